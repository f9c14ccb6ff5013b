"""The table that stands at the bottom of a terminal while a run works."""

import time
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

BAR_WIDTH = 30
LABELS = {"pretrain": "direct transfer", "supervised": "supervised bound"}  # of scores


class Board:
    """What is known of a run now, from the lines of metrics.jsonl; rich draws it."""

    def __init__(self) -> None:
        self._spinner = Spinner("dots")
        self._stage, self._since = "", time.monotonic()
        self._bar: Bar | None = None
        self._rows: dict[str, str] = {}  # in the order in which they are first known

    def show(self, event: Mapping[str, Any]) -> None:
        stage = str(event.get("stage", ""))
        if event.get("state") == "started":
            self._stage, self._since, self._bar = stage, time.monotonic(), None
            self._rows.pop("loss", None)
        elif "loss" in event:
            at = f"epoch {event['epoch']}/{event['epochs']}  step"
            self.count(at, event["step"], event["steps"], event["images_per_s"], kind="step")
            self._rows["loss"] = loss_terms(event["loss"])
        elif "extracted" in event:
            self.count("image", event["extracted"], event["num_images"], event["extracted_per_s"])
        if "num_clusters" in event:
            one_camera = event.get("one_camera_share")
            self._rows["clusters"] = (
                f"{stage}: K {event['num_clusters']}  outliers {event['outlier_share']:.0%}"
                + ("" if one_camera is None else f"  of one camera {one_camera:.0%}")
            )
        if "map" in event:
            self._rows["scores"] = f"{stage}: mAP {event['map']:.1%}  Rank-1 {event['rank1']:.1%}"

    def count(
        self, what: str, done: int, total: int, rate: float | None = None, kind: str | None = None
    ) -> None:
        """`done` of `total` things of a kind, and how many images a second that is."""
        kind = kind or what
        if self._bar is None or self._bar.kind != kind or done < self._bar.done:
            self._bar = Bar(kind, done)
        self._bar.text = f"{what} {done}/{total}"
        self._bar.done, self._bar.total, self._bar.rate = done, total, rate

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_row(self._spinner, f"{escape(self._stage)}  [dim]{clock(self._since)}[/dim]")
        if (bar := self._bar) is not None:
            table.add_row("", bar)
        for name, text in list(self._rows.items()):  # another thread may add one meanwhile
            table.add_row(name, escape(text))
        return table


class Bar:
    """How far something is, and how long it will take by its pace so far."""

    def __init__(self, kind: str, done: int) -> None:
        self.kind, self.text = kind, ""
        self.done = self.total = done
        self.rate: float | None = None
        self._first, self._since = done, time.monotonic()

    def left(self, now: float) -> float | None:
        """Seconds, once there is a pace."""
        if self.done <= self._first:
            return None
        return (now - self._since) / (self.done - self._first) * (self.total - self.done)

    def __rich__(self) -> Table:
        row = Table.grid(padding=(0, 2))
        left = self.left(time.monotonic())
        row.add_row(
            self.text,
            ProgressBar(total=max(self.total, 1), completed=self.done, width=BAR_WIDTH),
            "" if left is None else f"{minutes(left)} left",
            "" if self.rate is None else f"{self.rate:.0f} images/s",
        )
        return row


def loss_terms(loss: Mapping[str, float]) -> str:
    """Those that the training uses."""
    return "  ".join(f"{name} {value:.3f}" for name, value in loss.items() if value)


def clock(since: float) -> str:
    return minutes(time.monotonic() - since)


def minutes(seconds: float) -> str:
    """1:05, or 2:01:05 from an hour on."""
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return f"{whole // 60}:{whole % 60:02d}"
