"""What a run shows while it works: a progress bar on a terminal, plain lines elsewhere.

Workers send events to the job queue; the driver collects them while it waits.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import ray
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from daal.errors import StorageError
from pipelines.run.events import Extracted, GroupStarted, Note, Stalled, TrainingStep, event_of
from pipelines.run.results import Clusters, Scores
from pipelines.run.stages import Stage

PLAIN_SECONDS = 15.0  # between plain lines about one stage


class Progress:
    """Console output of the driver, and the figures that go to metrics.jsonl.

    quiet: nothing but notes. live: a bar on terminals; off where others write to it as well.
    """

    def __init__(
        self,
        record: Callable[[dict[str, Any]], None] = lambda event: None,
        console: Console | None = None,
        quiet: bool = False,
        live: bool = True,
    ) -> None:
        self.console = console or Console(stderr=True)
        self._record = record
        self._quiet = quiet
        on_terminal = live and not quiet and self.console.is_interactive
        self._bar = _bar(self.console) if on_terminal else None
        self._stage = ""
        self._started = time.monotonic()
        self._shown = 0.0

    def say(self, text: str) -> None:
        if not self._quiet:
            self._print(text)

    def note(self, text: str) -> None:
        """Say what a user should know even if nothing else is shown."""
        self._print(f"note: {text}")

    def _print(self, text: str) -> None:
        line = f"[dim]{clock(time.monotonic() - self._started):>6}[/dim]  {escape(text)}"
        self.console.print(line, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; on a terminal its bar is gone however it ends."""
        started = time.monotonic()
        self._stage = name
        self.figures(name, state="started")
        if self._bar:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(name, total=None, details="")
        with self._bar or nullcontext():
            yield
        seconds = time.monotonic() - started
        self.say(f"{name}: done in {seconds:.1f} s")
        self.figures(name, seconds=round(seconds, 3))

    def tasks(self, stage: str, num_done: int, num_tasks: int) -> None:
        """Show how far the tasks of a stage of pseudo-labelling are."""
        self._count(self._stage, stage, num_done, num_tasks)

    def figures(self, stage: str, **figures: Any) -> None:
        """Keep figures of a stage (scores, clusters) beside those of training."""
        self._record({"time": time.time(), "stage": stage, **figures})

    @contextmanager
    def watch(self, queue: Any) -> Iterator[None]:
        """Show and record what workers send, until the block ends."""
        done = threading.Event()

        def collect() -> None:
            while True:
                finished = done.wait(1.0)
                try:
                    lines = ray.get(queue.events.remote(), timeout=10)
                except ray.exceptions.GetTimeoutError:  # the queue is starting, or busy
                    lines = []
                except ray.exceptions.RayError:  # lost with its node: training continues unseen
                    return
                for line in lines:
                    with suppress(StorageError):  # the driver's own thread meets it soon enough
                        self._record(line)
                    self._show(line)
                if finished:
                    return

        thread = threading.Thread(target=collect, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=10)

    def _show(self, line: Mapping[str, Any]) -> None:
        event = event_of(line)
        match event:
            case GroupStarted() if event.starts > 1:
                self.note(f"{event.workers} workers have taken over (start {event.starts})")
            case Stalled():
                self.note(
                    f"rank {event.rank} has finished no step for {event.stalled_s} s "
                    f"({event.stage}, step {event.step}); it ends, and the workers start again "
                    f"from the last checkpoint. It was here:\n{event.stack}"
                )
            case Note():
                self.note(f"{event.stage}: {event.note}")
            case TrainingStep():
                terms = (f"{name} {value:.3f}" for name, value in event.loss.items() if value)
                self._count(
                    event.stage, f"epoch {event.epoch}/{event.epochs}  step", event.step,
                    event.steps, f"  {event.images_per_s:.0f} images/s  loss {'  '.join(terms)}",
                    is_last=event.step == event.steps,
                )  # fmt: skip
            case Extracted():
                rate = f"  {event.extracted_per_s:.0f} images/s"
                self._count(event.stage, "image", event.extracted, event.num_images, rate)

    def _count(
        self, stage: str, what: str, done: int, total: int, details: str = "", is_last: bool = False
    ) -> None:
        """Move the bar; without one, write a line now and then, and for the `is_last`."""
        text = f"{stage}: {what} {done}/{total}"
        if self._bar:
            for task in self._bar.tasks:  # the only one
                if task.total != total:  # other things are counted, at another pace
                    self._bar.reset(task.id, total=total)
                self._bar.update(task.id, completed=done, description=text, details=details)
        elif is_last or time.monotonic() - self._shown > PLAIN_SECONDS:
            self._shown = time.monotonic()
            self.say(text + details)


def _bar(console: Console) -> Bar:
    return Bar(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(30),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[details]}", style="dim", markup=False),
        console=console,
        transient=True,
    )


def scores_table(scores: Mapping[Stage, Scores], labellings: Mapping[Stage, Clusters]) -> Table:
    """Model by model: mAP, Rank-1 and the clusters trained on."""
    table = Table("", "mAP", "Rank-1", "K", "outliers", title="Scores on the target's test images")
    for model, found in scores.items():
        clusters = labellings.get(model)
        table.add_row(
            model.title,
            f"{100 * found.map:.1f}",
            f"{100 * found.rank1:.1f}",
            "" if clusters is None else str(clusters.num_clusters),
            "" if clusters is None else f"{100 * clusters.outlier_share:.0f} %",
        )
    return table


def clock(seconds: float) -> str:
    """1:05, or 2:01:05 from an hour on."""
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
