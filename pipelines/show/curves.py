"""A run's curves for others to show: lines of metrics.jsonl -> points -> trackers; and pictures.

metrics.jsonl is the record; trackers only follow it. Each lives on a thread of its own, so that a
server that is slow or away holds nothing up: one that fails is named once and left out.
"""

import importlib.util
import logging
import math
import queue
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from daal.config import MAY_CHANGE, NOT_KEPT, Config, TrackingConfig, marked
from daal.errors import ConfigError, first_line
from pipelines.run.folder import RunFolder
from pipelines.show.trackers import Ending, Mlflow, Picture, Point, RunToTrack, TensorBoard, Wandb

Event = Mapping[str, Any]  # a line of metrics.jsonl
Say = Callable[[str], None]
Tracker = TensorBoard | Mlflow | Wandb

METRICS = "metrics.jsonl"
ID_FILE = "tracking.json"
CLOSE_SECONDS = {"finished": 20.0, "failed": 5.0, "stopped": 5.0}  # that the end waits for servers

SCORES = ("map", "rank1", "rank5", "rank10")
CLUSTERS = ("num_clusters", "outlier_share", "silhouette", "cross_camera_silhouette", "agreement",
            "one_camera_share", "cross_camera_share", "cross_camera_chance", "ari", "nmi",
            "pair_precision", "cross_camera_precision", "pair_recall")  # fmt: skip
TRAINING = ("lr", "images_per_s", "input_share")


class Points:
    """Turns lines of metrics.jsonl into points, each place on each axis once.

    Trainings have an axis of steps, with those of all iterations in a row; scores and clusters one
    of iterations. Steps that are done again after an interruption give the same values, and are
    left out.
    """

    def __init__(self) -> None:
        self._num_steps: dict[int, int] = {}  # of each iteration's training
        self._last: dict[str, int] = {}  # place of each tag's last point

    def of(self, event: Event) -> Iterator[Point]:
        stage = str(event.get("stage", "")).partition("/")[0]
        kind, _, number = stage.partition("-")
        iteration = int(number) if number.isdecimal() else 0
        if "loss" in event:
            group, x = "adapt" if kind == "iteration" else kind, int(event["step"])
            if kind == "iteration":
                self._num_steps[iteration] = int(event["steps"])
                x += sum(n for i, n in self._num_steps.items() if i < iteration)
            values = {f"loss/{term}": value for term, value in event["loss"].items()}
            yield from self._new(group, f"{group}/step", x, values | _of(event, TRAINING), event)
        elif kind in ("pretrain", "iteration"):
            yield from self._new("scores", "iteration", iteration, _of(event, SCORES), event)
            clusters = _of(event, CLUSTERS)
            if eps := event.get("eps"):
                clusters["eps"] = eps[0]  # of the whole body
            yield from self._new("clusters", "iteration", iteration, clusters, event)
        elif kind == "supervised":
            bound = {f"supervised_{name}": value for name, value in _of(event, SCORES).items()}
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
            yield Point(group, axis, x, new, event["time"])


def _of(event: Event, names: tuple[str, ...]) -> dict[str, float]:
    return {name: event[name] for name in names if isinstance(event.get(name), int | float)}


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
) -> Iterator[Callable[[Event | Picture], None]]:
    """Inside, the trackers that `config.tracking` chooses get what the given function is called
    with; what metrics.jsonl holds of the run already they have, or get first.

    `say` is told what is left out, `note` what failed; nothing is raised because of a tracker.
    """
    chosen = _chosen(config.tracking, run, say)
    if not chosen:
        yield lambda event: None
        return
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # of every new try
    history = run.lines(METRICS)
    values = config.model_dump(mode="json", exclude=marked(NOT_KEPT) | marked(MAY_CHANGE))
    described = RunToTrack(name, _id(run), Path(run.base) if run.is_local else None, values)
    followers = [
        _Follower(kind.title, partial(kind, described, config.tracking), history, note)
        for kind in chosen
    ]

    def show(event: Event | Picture) -> None:
        for follower in followers:
            follower.show(event)

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
    """One tracker on its thread."""

    def __init__(
        self, name: str, start: Callable[[], Tracker], history: list[dict[str, Any]], note: Say
    ) -> None:
        self._name, self._note = name, note
        self._events: queue.SimpleQueue[Event | Picture | Ending] = queue.SimpleQueue()
        self._dropped = False
        self._thread = threading.Thread(target=self._follow, args=(start, history), daemon=True)
        self._thread.start()

    def show(self, event: Event | Picture) -> None:
        if not self._dropped:
            self._events.put(event)

    def close(self, ending: Ending) -> None:
        self._events.put(ending)
        self._thread.join(CLOSE_SECONDS[ending])
        if self._thread.is_alive():
            self._dropped = True
            self._note(
                f"{self._name} hasn't taken all figures in {CLOSE_SECONDS[ending]:g} s and isn't "
                f"waited for; {METRICS} has them"
            )

    def _follow(self, start: Callable[[], Tracker], history: list[dict[str, Any]]) -> None:
        try:
            tracker, points = start(), Points()
            for line in history:
                for point in points.of(line):
                    if tracker.fresh:
                        tracker.log(point)
            while not isinstance(event := self._events.get(), str):
                if isinstance(event, Picture):
                    tracker.show(event)
                    continue
                for point in points.of(event):
                    tracker.log(point)
            tracker.close(event)
        except Exception as error:
            if not self._dropped:
                self._dropped = True
                reason = first_line(error)[:300]
                self._note(
                    f"{self._name} gets no more of this run's figures ({reason}); the run "
                    f"goes on, and {METRICS} has them all"
                )
