"""Sends a run's curves to TensorBoard's event files, to an MLflow server, to Weights & Biases.

metrics.jsonl is the record, and trackers follow it. Each has a thread of its own, so that a server
that is slow or away doesn't delay the run. One that fails is named once and left out.
"""

import importlib.util
import json
import logging
import os
import queue
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from daal.config import MAY_CHANGE, NOT_KEPT, Config, TrackingConfig, marked
from daal.errors import ConfigError, first_line
from daal.load_config import flat
from pipelines.run.artefacts import json_bytes
from pipelines.run.events import METRICS, event_of
from pipelines.run.folder import RunFolder
from pipelines.show.curves import AXES, Point, Points

Line = Mapping[str, Any]  # of metrics.jsonl
Lines = queue.SimpleQueue[Line | bool]  # the last says whether the run has finished
Say = Callable[[str], None]

ID_FILE = "tracking.json"
CLOSE_SECONDS = 10.0  # that the run's end waits for a tracker
PARAMS_AT_ONCE = 100  # MLflow's limit of a request


@dataclass(frozen=True)
class RunToTrack:
    """What a tracker is told about a run beside its points."""

    name: str
    id: str  # the same after each interruption; another run in the same folder has another
    folder: Path | None  # None on object stores
    config: dict[str, Any]
    tracking: TrackingConfig


class TensorBoard:
    """Event files in the run folder's tensorboard/, one for each start of the run.

    Written as points come: tensorboardX's own SummaryWriter writes on a thread that a full disk
    ends unseen, and waits for that thread for ever.
    """

    title = "TensorBoard"

    def __init__(self, run: RunToTrack) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event

        assert run.folder is not None
        self._scalar, self._event = summary.scalar, Event
        folder = run.folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        text = yaml.safe_dump(run.config, sort_keys=False)
        as_code = textwrap.indent(text, "    ")  # it is read as Markdown
        self._write(0, time.time(), summary.text("config", as_code))
        self._writer.flush()

    def log(self, point: Point) -> None:
        for tag, value in point.tags().items():
            self._write(point.x, point.time, self._scalar(tag, value))
        self._writer.flush()

    def close(self, finished: bool) -> None:
        self._writer.close()

    def _write(self, step: int, seconds: float, summary: Any) -> None:
        self._writer.write_event(self._event(step=step, wall_time=seconds, summary=summary))


class Mlflow:
    """A run of an MLflow server, found again by the tag daal.id."""

    title = "MLflow"

    def __init__(self, run: RunToTrack) -> None:
        # It prints links to standard output, and reports its use to its makers, unless told not to.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # of every new try
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=run.tracking.mlflow)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "daal"
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        tags = {"daal.id": run.id}
        earlier = self._client.search_runs([experiment], f"tags.`daal.id` = '{run.id}'")
        if earlier:
            self._run = earlier[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        created = self._client.create_run(experiment, run_name=run.name, tags=tags)
        self._run = created.info.run_id
        params = [Param(key, str(value)) for key, value in flat(run.config).items()]
        for at in range(0, len(params), PARAMS_AT_ONCE):
            self._client.log_batch(self._run, params=params[at : at + PARAMS_AT_ONCE])

    def log(self, point: Point) -> None:
        at = int(1000 * point.time)  # milliseconds
        metrics = [self._metric(tag, value, at, point.x) for tag, value in point.tags().items()]
        self._client.log_batch(self._run, metrics)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if finished else "FAILED")


class Wandb:
    """A run of Weights & Biases, continued by its id.

    Nothing is sent but the configuration, the points and what its client measures of the machine:
    no console output, no code, no list of packages.
    """

    title = "Weights & Biases"

    def __init__(self, run: RunToTrack) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        # Silent: it would ask for a login on the terminal otherwise.
        wandb.setup(wandb.Settings(silent=True))
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True,
            disable_job_creation=True, x_save_requirements=False, init_timeout=30,
        )  # fmt: skip
        entity, _, project = run.tracking.wandb.rpartition("/")
        self._run = wandb.init(
            entity=entity or None, project=project, id=run.id, name=run.name, resume="allow",
            config=run.config, dir=run.folder, reinit="create_new", settings=settings,
        )  # fmt: skip
        for group, axis in AXES.items():
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(f"{group}/*", step_metric=axis)

    def log(self, point: Point) -> None:
        self._run.log({**point.tags(), AXES[point.group]: point.x})

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


Tracker = TensorBoard | Mlflow | Wandb


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
    """Gives a function that passes a line of metrics.jsonl to the trackers of `config.tracking`.

    `say` is told what is left out, `note` what failed; a tracker never raises anything here.
    """
    chosen: list[type[Tracker]] = []
    if run.is_local:
        chosen.append(TensorBoard)
    else:
        say("TensorBoard is left out: its files need a run folder on a disk; metrics.jsonl is kept")
    if config.tracking.mlflow:
        chosen.append(Mlflow)
    if config.tracking.wandb:
        chosen.append(Wandb)
    if not chosen:
        yield lambda line: None
        return
    about = RunToTrack(
        name,
        _kept_id(run, note),
        Path(run.base) if run.is_local else None,
        config.model_dump(mode="json", exclude=marked(NOT_KEPT) | marked(MAY_CHANGE)),
        config.tracking,
    )
    history = run.lines(METRICS)
    followers: list[tuple[str, Lines, threading.Thread]] = []
    for kind in chosen:
        lines: Lines = queue.SimpleQueue()
        arguments = (kind, about, history, lines, note)
        # A daemon: one that hangs holds nothing up.
        thread = threading.Thread(target=_follow, args=arguments, daemon=True)
        thread.start()
        followers.append((kind.title, lines, thread))

    def show(line: Line) -> None:
        for _, lines, _ in followers:
            lines.put(line)

    finished = False
    try:
        yield show
        finished = True
    finally:
        for title, lines, thread in followers:
            lines.put(finished)
            thread.join(CLOSE_SECONDS)
            if thread.is_alive():
                note(
                    f"{title} hasn't taken all figures in {CLOSE_SECONDS:g} s and isn't waited "
                    f"for; {METRICS} has them"
                )


def _kept_id(run: RunFolder, note: Say) -> str:
    """What trackers know the run by. It is made at the first start, and again if it is damaged."""
    if run.exists(ID_FILE):
        try:
            return str(json.loads(run.read(ID_FILE))["id"])
        except (ValueError, LookupError, TypeError):
            note(f"{ID_FILE} is damaged, so trackers begin a new run; {METRICS} has all figures")
    made = uuid.uuid4().hex[:16]
    run.write(ID_FILE, json_bytes({"id": made}))
    return made


def _follow(
    kind: type[Tracker], about: RunToTrack, history: list[dict[str, Any]], lines: Lines, note: Say
) -> None:
    """One tracker on its thread: passes on what comes, until it comes that the run ended."""
    try:
        tracker, points = kind(about), Points()
        for line in history:
            list(points.of(event_of(line)))  # the tracker has them from an earlier start
        while not isinstance(given := lines.get(), bool):
            for point in points.of(event_of(given)):
                tracker.log(point)
        tracker.close(given)
    except Exception as error:
        note(
            f"{kind.title} gets no more of this run's figures ({first_line(error)[:300]}); the run "
            f"continues, and {METRICS} has them all"
        )
