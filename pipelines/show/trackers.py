"""Places that show a run's curves: TensorBoard's event files, an MLflow server, Weights & Biases.

Each takes points (`pipelines.show.curves`), and is `fresh` if it has none of this run's yet. Errors
propagate to the tracker's thread, which handles them.
"""

import os
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from daal.config import TrackingConfig
from daal.load_config import flat

Ending = Literal["finished", "failed", "stopped"]
PARAMS_AT_ONCE = 100  # MLflow's limit of a request


@dataclass(frozen=True)
class Point:
    """Values of one moment on a group's axis (steps or iterations)."""

    group: str
    axis: str
    x: int
    values: Mapping[str, float]
    time: float  # seconds since the epoch

    def tags(self) -> dict[str, float]:
        return {f"{self.group}/{name}": value for name, value in self.values.items()}


@dataclass(frozen=True)
class RunToTrack:
    """What trackers say about a run beside its points."""

    name: str
    id: str  # the same whenever the run is continued
    folder: Path | None  # None on object stores
    config: dict[str, Any]


class TensorBoard:
    """Event files in the run folder's tensorboard/.

    Written as points come: tensorboardX's own SummaryWriter writes on a thread that a full disk
    ends unseen, and waits for that thread for ever.
    """

    title = "TensorBoard"

    def __init__(self, run: RunToTrack, config: TrackingConfig) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event

        assert run.folder is not None
        self._scalar, self._event = summary.scalar, Event
        folder = run.folder / "tensorboard"
        self.fresh = not folder.exists()
        folder.mkdir(exist_ok=True)
        # One file for each start of the run, also for two in a second.
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        if self.fresh:
            text = yaml.safe_dump(run.config, sort_keys=False)
            quoted = textwrap.indent(text, "    ")  # it is read as Markdown
            self._write(0, time.time(), summary.text("config", quoted))
        self._writer.flush()

    def log(self, point: Point) -> None:
        for tag, value in point.tags().items():
            self._write(point.x, point.time, self._scalar(tag, value))
        self._writer.flush()

    def close(self, ending: Ending) -> None:
        self._writer.close()

    def _write(self, step: int, seconds: float, summary: Any) -> None:
        self._writer.write_event(self._event(step=step, wall_time=seconds, summary=summary))


class Mlflow:
    """A run of an MLflow server, found again by the tag daal.id."""

    title = "MLflow"

    def __init__(self, run: RunToTrack, config: TrackingConfig) -> None:
        # It prints links to standard output, and reports its use to its makers, unless told not to.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=config.mlflow)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "daal"
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        earlier = self._client.search_runs([experiment], f"tags.`daal.id` = '{run.id}'")
        self.fresh = not earlier
        if earlier:
            self._run = earlier[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {"daal.id": run.id}
        created = self._client.create_run(experiment, run_name=run.name, tags=tags)
        self._run = created.info.run_id
        params = [Param(key, str(value)) for key, value in flat(run.config).items()]
        for at in range(0, len(params), PARAMS_AT_ONCE):
            self._client.log_batch(self._run, params=params[at : at + PARAMS_AT_ONCE])

    def log(self, point: Point) -> None:
        at = int(1000 * point.time)  # milliseconds
        metrics = [self._metric(tag, value, at, point.x) for tag, value in point.tags().items()]
        self._client.log_batch(self._run, metrics)

    def close(self, ending: Ending) -> None:
        status = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}[ending]
        self._client.set_terminated(self._run, status)


class Wandb:
    """A run of Weights & Biases, continued by its id.

    Nothing is sent but the configuration, the points and what its client measures of the machine:
    no console output, no code, no list of packages.
    """

    title = "Weights & Biases"

    def __init__(self, run: RunToTrack, config: TrackingConfig) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        # Silent: it would ask for a login on the terminal otherwise.
        wandb.setup(wandb.Settings(silent=True))
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True,
            disable_job_creation=True, x_save_requirements=False, init_timeout=30,
        )  # fmt: skip
        entity, _, project = config.wandb.rpartition("/")
        here = run.folder and run.folder / "wandb"
        was_here = here is not None and any(here.glob(f"*run-*-{run.id}"))
        self._run = wandb.init(
            entity=entity or None, project=project, id=run.id, name=run.name, resume="allow",
            config=run.config, dir=run.folder, reinit="create_new", settings=settings,
        )  # fmt: skip
        self.fresh = not (was_here or self._run.resumed)
        self._groups: set[str] = set()

    def log(self, point: Point) -> None:
        if point.group not in self._groups:
            self._groups.add(point.group)
            self._run.define_metric(point.axis, hidden=True)
            self._run.define_metric(f"{point.group}/*", step_metric=point.axis)
        self._run.log({**point.tags(), point.axis: point.x})

    def close(self, ending: Ending) -> None:
        self._run.finish(exit_code=0 if ending == "finished" else 1)
