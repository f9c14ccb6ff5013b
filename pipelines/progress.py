"""What a run shows while it works: a live line on a terminal, plain lines elsewhere.

Workers report to their desk; the driver collects from it while it waits for them.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from daal.errors import StorageError


class Progress:
    """Console output of the driver, and the figures that go to metrics.jsonl."""

    def __init__(
        self,
        record: Callable[[dict[str, Any]], None] = lambda event: None,
        console: Console | None = None,
    ) -> None:
        self.console = console or Console(stderr=True)
        self._record = record
        self._started = time.monotonic()
        self._shown = 0.0

    def say(self, text: str) -> None:
        seconds = int(time.monotonic() - self._started)
        clock = f"[dim]{seconds // 60:3d}:{seconds % 60:02d}[/dim]"
        self.console.print(f"{clock}  {escape(text)}", highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, with a spinner on a terminal."""
        started = time.monotonic()
        self._stage = name
        self.figures(name, state="started")
        if self.console.is_terminal:
            with self.console.status(name) as self._status:
                yield
        else:
            yield
        self.say(f"{name}: done in {time.monotonic() - started:.1f} s")

    def tasks(self, stage: str, num_done: int, num_tasks: int) -> None:
        """Show how far the tasks of a stage of pseudo-labelling are."""
        text = f"{self._stage}: {stage} {num_done}/{num_tasks}"
        if self.console.is_terminal:
            self._status.update(text)
        elif time.monotonic() - self._shown > 15:
            self._shown = time.monotonic()
            self.say(text)

    def figures(self, stage: str, **figures: Any) -> None:
        """Keep figures of a stage (scores, clusters) beside those of training."""
        self._record({"time": time.time(), "stage": stage, **figures})

    @contextmanager
    def watch(self, desk: Any) -> Iterator[None]:
        """Show and record what training workers send, until the block ends."""
        done = threading.Event()

        def collect() -> None:
            while True:
                finished = done.wait(1.0)
                try:
                    events = ray.get(desk.events.remote(), timeout=10)
                except ray.exceptions.GetTimeoutError:  # the desk is only starting, or busy
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
        if "loss" in event:
            self._training(event)
        elif event.get("starts", 1) > 1:
            self.say(f"note: {event['workers']} workers have taken over (start {event['starts']})")
        elif "stack" in event:
            self.say(
                f"note: rank {event['rank']} has finished no step for {event['stalled_s']} s "
                f"({event['stage']}, step {event['step']}); it ends, and the workers start anew "
                f"from the last checkpoint. It was here:\n{event['stack']}"
            )
        elif "note" in event:
            self.say(f"note: {event['stage']}: {event['note']}")

    def _training(self, event: dict[str, Any]) -> None:
        terms = {name: value for name, value in event["loss"].items() if value}
        loss = "  ".join(f"{name} {value:.3f}" for name, value in terms.items())
        text = (
            f"{event['stage']}: epoch {event['epoch']}/{event['epochs']}  "
            f"step {event['step']}/{event['steps']}  {event['images_per_s']:.0f} images/s  "
            f"loss {loss}"
        )
        if self.console.is_terminal:
            self._status.update(text)
        elif time.monotonic() - self._shown > 15 or event["step"] == event["steps"]:
            self._shown = time.monotonic()
            self.say(text)


def scores_table(rows: list[tuple[str, dict[str, Any]]]) -> Table:
    """Stage by stage: mAP, Rank-1 and the clusters trained on."""
    table = Table("", "mAP", "Rank-1", "K", "outliers", title="Scores on the target's test images")
    for name, row in rows:
        clusters = row.get("num_clusters")
        table.add_row(
            {"pretrain": "direct transfer", "supervised": "supervised bound"}.get(name, name),
            f"{100 * row['map']:.1f}",
            f"{100 * row['rank1']:.1f}",
            "" if clusters is None else str(clusters),
            "" if clusters is None else f"{100 * row['outlier_share']:.0f} %",
        )
    return table
