"""What stands at the bottom of a terminal while a run works: how far it is, and newest figures."""

from collections.abc import Iterable, Mapping

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipelines.run.events import Event, Extracted, Started, TrainingStep


class Board(Progress):
    """What is known of a run now, from its events."""

    def __init__(self, console: Console) -> None:
        self._rows: dict[str, str] = {}  # in the order in which they are first known
        self._kind = ""  # of what is counted
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(30),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[rate]}", style="dim"),
            console=console,
            transient=True,
        )

    def show(self, event: Event) -> None:
        figures, stage = event.figures, event.stage
        match event:
            case Started():
                for task in self.task_ids:
                    self.remove_task(task)
                self.add_task(stage, total=None, rate="", stage=stage)
                self._rows.pop("loss", None)
            case TrainingStep():
                at = f"epoch {event.epoch}/{event.epochs}  step"
                self.count("step", at, event.step, event.steps, event.images_per_s)
                self._rows["loss"] = loss_terms(event.loss)
            case Extracted():
                self.count(
                    "image", "image", event.extracted, event.num_images, event.extracted_per_s
                )
        if "num_clusters" in figures:
            one_camera = figures.get("one_camera_share")
            self._rows["clusters"] = (
                f"{stage}: K {figures['num_clusters']}  outliers {figures['outlier_share']:.0%}"
                + ("" if one_camera is None else f"  of one camera {one_camera:.0%}")
            )
        if "map" in figures:
            scores = f"mAP {figures['map']:.1%}  Rank-1 {figures['rank1']:.1%}"
            self._rows["scores"] = f"{stage}: {scores}"

    def count(self, kind: str, text: str, done: int, total: int, rate: float | None = None) -> None:
        """`done` of `total` things of a kind, and how many images a second that is."""
        if not self.tasks:
            return
        task = self.tasks[0]
        if kind != self._kind or done < task.completed:
            self._kind = kind
            self.reset(task.id)  # another pace: of other things, or after a restart
        self.update(
            task.id, total=total, completed=done,
            description=f"{task.fields['stage']}  {text} {done}/{total}",
            rate="" if rate is None else f"{rate:.0f} images/s",
        )  # fmt: skip

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for name, text in list(self._rows.items()):  # another thread may add one meanwhile
            table.add_row(name, escape(text))
        yield table


def loss_terms(loss: Mapping[str, float]) -> str:
    """Those that the training uses."""
    return "  ".join(f"{name} {value:.3f}" for name, value in loss.items() if value)
