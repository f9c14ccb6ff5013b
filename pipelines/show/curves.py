"""A run's curves: lines of metrics.jsonl become points, which trackers and the report show.

metrics.jsonl is the record, and trackers follow it. Each has a thread of its own, so that a server
that is slow or away doesn't delay the run; one that fails is named once and left out.
"""

import importlib.util
import logging
import math
import queue
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daal.config import MAY_CHANGE, NOT_KEPT, Config, TrackingConfig, marked
from daal.errors import ConfigError, first_line
from pipelines.run.events import METRICS, Event, TrainingStep, event_of
from pipelines.run.folder import RunFolder
from pipelines.run.stages import Stage
from pipelines.show.trackers import Ending, Mlflow, Point, RunToTrack, TensorBoard, Wandb

Line = Mapping[str, Any]  # of metrics.jsonl
Say = Callable[[str], None]
Tracker = TensorBoard | Mlflow | Wandb

ID_FILE = "tracking.json"
CLOSE_SECONDS = {"finished": 20.0, "failed": 5.0, "stopped": 5.0}  # that the end waits for servers

SCORES = ("map", "rank1", "rank5", "rank10")
CLUSTERS = ("num_clusters", "outlier_share", "silhouette", "cross_camera_silhouette", "agreement",
            "one_camera_share", "cross_camera_share", "cross_camera_chance", "ari", "nmi",
            "pair_precision", "cross_camera_precision", "pair_recall")  # fmt: skip
TRAINING = ("lr", "images_per_s", "input_share")


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
            yield from self._new(group, f"{group}/step", event.step + sum(before), values, event)
        elif stage.kind in ("pretrain", "iteration"):
            x, clusters = stage.iteration, _of(figures, CLUSTERS)
            if eps := figures.get("eps"):
                clusters["eps"] = eps[0]  # of the whole body
            yield from self._new("scores", "iteration", x, _of(figures, SCORES), event)
            yield from self._new("clusters", "iteration", x, clusters, event)
        elif stage.kind == "supervised":
            bound = {f"supervised_{name}": value for name, value in _of(figures, SCORES).items()}
            yield from self._new("scores", "iteration", 0, bound, event)

    def _new(
        self, group: str, axis: str, x: int, values: Mapping[str, float], event: Event
    ) -> Iterator[Point]:
        new = {}
        for name, value in values.items():
            tag = f"{group}/{name}"
            if math.isfinite(value) and x > self._last.get(tag, -1):
                self._last[tag] = x
                new[name] = float(value)
        if new:
            yield Point(group, axis, x, new, event.time)


def _of(figures: Line, names: tuple[str, ...]) -> dict[str, float]:
    return {name: figures[name] for name in names if isinstance(figures.get(name), int | float)}


def check_tracking(config: TrackingConfig) -> None:
    """Raise ConfigError if a tracker that is asked for isn't installed."""
    for key in ("mlflow", "wandb"):  # the packages are called so, too
        if getattr(config, key) and importlib.util.find_spec(key) is None:
            raise ConfigError(
                f"tracking.{key} needs a package that isn't installed; add it by "
                f'pip install "daal-reid[{key}]".'
            )


@contextmanager
def tracked(
    config: Config, run: RunFolder, name: str, say: Say, note: Say
) -> Iterator[Callable[[Line], None]]:
    """Inside, the trackers that `config.tracking` chooses get each line that the given function is
    called with, after those that metrics.jsonl holds already.

    `say` is told what is left out, `note` what failed; a tracker never raises anything here.
    """
    chosen = _chosen(config.tracking, run, say)
    if not chosen:
        yield lambda line: None
        return
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # of every new try
    history = run.lines(METRICS)
    values = config.model_dump(mode="json", exclude=marked(NOT_KEPT) | marked(MAY_CHANGE))
    about = RunToTrack(name, _id(run), Path(run.base) if run.is_local else None, values)
    followers = [_Follower(kind, about, config.tracking, history, note) for kind in chosen]

    def show(line: Line) -> None:
        for follower in followers:
            follower.lines.put(line)

    ending: Ending = "failed"
    try:
        yield show
        ending = "finished"
    except (KeyboardInterrupt, SystemExit):
        ending = "stopped"
        raise
    finally:
        for follower in followers:
            follower.close(ending)


def _chosen(config: TrackingConfig, run: RunFolder, say: Say) -> list[type[Tracker]]:
    chosen: list[type[Tracker]] = []
    if run.is_local:
        chosen.append(TensorBoard)
    else:
        say("TensorBoard is left out: its files need a run folder on a disk; metrics.jsonl is kept")
    return chosen + [Mlflow] * bool(config.mlflow) + [Wandb] * bool(config.wandb)


def _id(run: RunFolder) -> str:
    """Of this run folder, wherever it is moved to; another run in the same place has another."""
    for line in run.lines(ID_FILE):
        if isinstance(line, dict) and isinstance(line.get("id"), str):
            return str(line["id"])
    new = uuid.uuid4().hex[:16]
    run.write(ID_FILE, f'{{"id": "{new}"}}\n'.encode())
    return new


class _Follower:
    """One tracker on its thread, which is a daemon: one that hangs holds nothing up."""

    def __init__(
        self,
        kind: type[Tracker],
        about: RunToTrack,
        config: TrackingConfig,
        history: list[dict[str, Any]],
        note: Say,
    ) -> None:
        self.lines: queue.SimpleQueue[Line | Ending] = queue.SimpleQueue()
        self._kind, self._note = kind, note
        self._waited_for = True
        arguments = (about, config, history)
        self._thread = threading.Thread(target=self._follow, args=arguments, daemon=True)
        self._thread.start()

    def close(self, ending: Ending) -> None:
        self.lines.put(ending)
        self._thread.join(CLOSE_SECONDS[ending])
        if self._thread.is_alive():
            self._waited_for = False
            self._note(
                f"{self._kind.title} hasn't taken all figures in {CLOSE_SECONDS[ending]:g} s and "
                f"isn't waited for; {METRICS} has them"
            )

    def _follow(
        self, about: RunToTrack, config: TrackingConfig, history: list[dict[str, Any]]
    ) -> None:
        try:
            tracker, points = self._kind(about, config), Points()
            for line in history:
                for point in points.of(event_of(line)):
                    if tracker.fresh:
                        tracker.log(point)
            while not isinstance(given := self.lines.get(), str):
                for point in points.of(event_of(given)):
                    tracker.log(point)
            tracker.close(given)
        except Exception as error:
            if self._waited_for:
                self._note(
                    f"{self._kind.title} gets no more of this run's figures "
                    f"({first_line(error)[:300]}); the run continues, and {METRICS} has them all"
                )
