"""A run's curves: lines of metrics.jsonl become points, which trackers and the report show."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.run.events import Event, TrainingStep
from pipelines.run.stages import Stage

SCORES = ("map", "rank1", "rank5", "rank10")
CLUSTERS = ("num_clusters", "outlier_share", "silhouette", "cross_camera_silhouette", "agreement",
            "one_camera_share", "cross_camera_share", "cross_camera_chance", "ari", "nmi",
            "pair_precision", "cross_camera_precision", "pair_recall")  # fmt: skip
TRAINING = ("lr", "images_per_s", "input_share")
# What each group of values is drawn over.
AXES = {"pretrain": "pretrain/step", "adapt": "adapt/step", "supervised": "supervised/step",
        "scores": "iteration", "clusters": "iteration"}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """Values of one moment."""

    group: str
    x: int  # on the group's axis
    values: Mapping[str, float]
    time: float  # seconds since the epoch

    def tags(self) -> dict[str, float]:
        return {f"{self.group}/{name}": value for name, value in self.values.items()}


class Points:
    """Turns events into points, each place on each axis once.

    Trainings have an axis of steps, on which all iterations follow each other; scores and clusters
    have one of iterations. Steps that are repeated after an interruption give the same values, and
    are left out.
    """

    def __init__(self) -> None:
        self.num_steps: dict[Stage, int] = {}  # of each training
        self._last: dict[str, int] = {}  # place of each tag's last point

    def of(self, event: Event) -> Iterator[Point]:
        stage, figures = Stage.parse(event.stage), event.figures
        if stage is None:
            return
        if isinstance(event, TrainingStep):
            group = "adapt" if stage.kind == "iteration" else stage.kind
            self.num_steps[stage] = event.steps
            before = (n for of, n in self.num_steps.items()
                      if of.kind == stage.kind and of.iteration < stage.iteration)  # fmt: skip
            values = {f"loss/{term}": value for term, value in event.loss.items()}
            values |= _of(figures, TRAINING)
            yield from self._new(group, event.step + sum(before), values, event)
        elif stage.kind in ("pretrain", "iteration"):
            x, clusters = stage.iteration, _of(figures, CLUSTERS)
            if eps := figures.get("eps"):
                clusters["eps"] = eps[0]  # of the whole body
            yield from self._new("scores", x, _of(figures, SCORES), event)
            yield from self._new("clusters", x, clusters, event)
        elif stage.kind == "supervised":
            bound = {f"supervised_{name}": value for name, value in _of(figures, SCORES).items()}
            yield from self._new("scores", 0, bound, event)

    def _new(
        self, group: str, x: int, values: Mapping[str, float], event: Event
    ) -> Iterator[Point]:
        new = {}
        for name, value in values.items():
            tag = f"{group}/{name}"
            if math.isfinite(value) and x > self._last.get(tag, -1):
                self._last[tag] = x
                new[name] = float(value)
        if new:
            yield Point(group, x, new, event.time)


def _of(figures: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float]:
    return {name: figures[name] for name in names if isinstance(figures.get(name), int | float)}
