"""What a run shows while it works: a live table on a terminal, plain lines elsewhere.

Workers send events to the job queue; the driver collects them while it waits.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import ray
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from daal.errors import StorageError
from pipelines.show.table import LABELS, Board, clock, loss_terms

PLAIN_SECONDS = 15.0  # between plain lines about one thing


class Progress:
    """Console output of the driver, and the figures that go to metrics.jsonl.

    quiet: nothing but notes. live: a table on terminals; off where others write to it as well.
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
        self._board = Board() if live and not quiet and self.console.is_interactive else None
        self._stage = ""
        self._started = time.monotonic()
        self._shown = 0.0

    def say(self, text: str) -> None:
        if not self._quiet:
            self._print(text)

    def tell(self, text: str) -> None:
        """The same without the time."""
        if not self._quiet:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Say what a user should know even if nothing else is shown."""
        self._print(f"note: {text}")

    def _print(self, text: str) -> None:
        line = f"[dim]{clock(self._started):>6}[/dim]  {escape(text)}"
        self.console.print(line, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; on a terminal the table stands below it, and is gone however it ends.

        Of one that ends well, the seconds are kept.
        """
        started = time.monotonic()
        self._stage = name
        self.figures(name, state="started")
        board = self._board
        with Live(board, console=self.console, transient=True) if board else nullcontext():
            yield
        seconds = time.monotonic() - started
        self.say(f"{name}: done in {seconds:.1f} s")
        self.figures(name, seconds=round(seconds, 3))

    def tasks(self, stage: str, num_done: int, num_tasks: int) -> None:
        """Show how far the tasks of a stage of pseudo-labelling are."""
        if self._board:
            self._board.count(stage, num_done, num_tasks)
        else:
            self._now_and_then(f"{self._stage}: {stage} {num_done}/{num_tasks}")

    def figures(self, stage: str, **figures: Any) -> None:
        """Keep figures of a stage (scores, clusters) beside those of training."""
        event = {"time": time.time(), "stage": stage, **figures}
        self._record(event)
        if self._board:
            self._board.show(event)

    @contextmanager
    def watch(self, queue: Any) -> Iterator[None]:
        """Show and record what workers send, until the block ends."""
        done = threading.Event()

        def collect() -> None:
            while True:
                finished = done.wait(1.0)
                try:
                    events = ray.get(queue.events.remote(), timeout=10)
                except ray.exceptions.GetTimeoutError:  # the queue is starting, or busy
                    events = []
                except ray.exceptions.RayError:  # lost with its node: training goes on unseen
                    return
                for event in events:
                    with suppress(StorageError):  # the driver's own thread meets it soon enough
                        self._record(event)
                    self._show(event)
                if finished:
                    return

        thread = threading.Thread(target=collect, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=10)

    def _show(self, event: dict[str, Any]) -> None:
        if self._board:
            self._board.show(event)
        elif "loss" in event:
            text = (
                f"{event['stage']}: epoch {event['epoch']}/{event['epochs']}  "
                f"step {event['step']}/{event['steps']}  {event['images_per_s']:.0f} images/s  "
                f"loss {loss_terms(event['loss'])}"
            )
            self._now_and_then(text, always=event["step"] == event["steps"])
        elif "extracted" in event:
            self._now_and_then(
                f"{event['stage']}: {event['extracted']}/{event['num_images']} images  "
                f"{event['extracted_per_s']:.0f} images/s"
            )
        if event.get("starts", 1) > 1:
            self.note(f"{event['workers']} workers have taken over (start {event['starts']})")
        elif "stack" in event:
            self.note(
                f"rank {event['rank']} has finished no step for {event['stalled_s']} s "
                f"({event['stage']}, step {event['step']}); it ends, and the workers start anew "
                f"from the last checkpoint. It was here:\n{event['stack']}"
            )
        elif "note" in event:
            self.note(f"{event['stage']}: {event['note']}")

    def _now_and_then(self, text: str, always: bool = False) -> None:
        if always or time.monotonic() - self._shown > PLAIN_SECONDS:
            self._shown = time.monotonic()
            self.say(text)


def scores_table(rows: list[tuple[str, dict[str, Any]]]) -> Table:
    """Stage by stage: mAP, Rank-1 and the clusters trained on."""
    table = Table("", "mAP", "Rank-1", "K", "outliers", title="Scores on the target's test images")
    for name, row in rows:
        clusters = row.get("num_clusters")
        table.add_row(
            LABELS.get(name, name),
            f"{100 * row['map']:.1f}",
            f"{100 * row['rank1']:.1f}",
            "" if clusters is None else str(clusters),
            "" if clusters is None else f"{100 * row['outlier_share']:.0f} %",
        )
    return table
