"""One training by Ray Train workers: pretraining, adapting, or the supervised bound."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from daal import checkpoint
from daal.config import Config, FitConfig
from daal.errors import CheckpointError, ClusterError, DaalError, DataError, TrainingDiverged
from daal.network import DaalNetwork
from daal.plan import Plan
from pipelines.progress import Monitor, Progress
from pipelines.run_folder import RunFolder
from pipelines.session import Resources
from pipelines.stream import StreamSource
from pipelines.train_loop import FitJob, FitOutcome, Labels, train_loop

Weights = dict[str, NDArray[Any]]  # a checkpoint's tensors, as they travel through the object store
NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Images:
    """A domain's image table, here and in the object store."""

    table: pa.Table
    reference: ray.ObjectRef[Any]

    def rows(self, split: str) -> NDArray[np.int64]:
        return np.flatnonzero(self.table["split"].to_numpy(zero_copy_only=False) == split)

    def column(self, name: str) -> NDArray[np.int64]:
        return self.table[name].to_numpy().astype(np.int64)


@dataclass(frozen=True)
class Trainer:
    """Runs fits on the cluster; everything that is the same for all fits of a run."""

    config: Config
    run: RunFolder
    resources: Resources
    progress: Progress

    def supervised(self, stage: str, images: Images) -> Weights:
        """Line 1 of Algorithm 1: Eq. 3 on a labelled domain, from the backbone's own weights."""
        labels, rows = class_labels(images)
        fit = self.config.pretrain
        plan = self._plan(fit, 0, rows, NO_ROWS, NO_ROWS)
        torch.manual_seed(self.config.seed)
        start = {n: t.numpy() for n, t in DaalNetwork(self.config.network).state_dict().items()}
        return self._fit(stage, fit, 0, plan, images, images, labels, start)

    def adapt(
        self,
        stage: str,
        iteration: int,
        source: Images,
        target: Images,
        features_NC: NDArray[np.float32],
        pseudo_labels_N: NDArray[np.int64],
        centroids_KC: NDArray[np.float32],
        start: Weights,
    ) -> Weights:
        """Line 6 of Algorithm 1: Eq. 7 on both domains, outliers left out.

        features_NC and pseudo_labels_N have a row for every row of the target's table.
        """
        labels, source_rows = class_labels(source)
        labels = Labels(
            labels.source_N, labels.num_source_ids, pseudo_labels_N, features_NC, centroids_KC
        )
        fit = self.config.adapt
        target_rows = np.flatnonzero(pseudo_labels_N >= 0)
        plan = self._plan(fit, iteration, source_rows, target_rows, pseudo_labels_N[target_rows])
        return self._fit(stage, fit, iteration, plan, source, target, labels, start)

    def _plan(
        self,
        fit: FitConfig,
        iteration: int,
        source_rows: NDArray[np.int64],
        target_rows: NDArray[np.int64],
        target_labels: NDArray[np.int64],
    ) -> Plan:
        return Plan(
            self.config.seed,
            iteration,
            fit.epochs,
            fit.batch_source,
            fit.batch_target,
            source_rows,
            target_rows,
            target_labels,
            fit.images_per_id,
            fit.steps_per_epoch or 0,
        )

    def _fit(
        self,
        stage: str,
        fit: FitConfig,
        iteration: int,
        plan: Plan,
        source: Images,
        target: Images,
        labels: Labels,
        start: Weights,
    ) -> Weights:
        monitor = Monitor.options(  # type: ignore[attr-defined]
            scheduling_strategy=NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=True
            )
        ).remote()
        stream = StreamSource(ray.put(plan), source.reference, target.reference, self.config.input)
        job = FitJob(
            self.config, fit, iteration, stream, ray.put(labels), ray.put(start), monitor,
            self.resources.threads,
        )  # fmt: skip
        trainer = TorchTrainer(
            train_loop,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(
                num_workers=self.resources.num_workers,
                use_gpu=self.resources.use_gpu,
                resources_per_worker={"CPU": self.resources.cpus_per_worker}
                | ({"GPU": 1} if self.resources.use_gpu else {}),
            ),
            run_config=RunConfig(
                name=stage.replace("/", "-"),
                storage_path=self.run.path("ray_train"),
                storage_filesystem=self.run.filesystem,
                failure_config=FailureConfig(max_failures=self.config.ray.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
            ),
        )
        with self.progress.watch(stage, monitor):
            try:
                result = _interruptible(trainer.fit)
            except ray.train.TrainingFailedError as error:
                raise _cause(error) from error
        outcome: FitOutcome = result.return_value
        if outcome.diverged is not None:
            raise TrainingDiverged(f"{stage}: {outcome.diverged}")
        self.progress.figures(stage, workers=outcome.num_workers, device=outcome.device)
        if result.checkpoint is None:
            raise CheckpointError(
                f"{stage} ended without a checkpoint; run the same command again."
            )
        with result.checkpoint.as_directory() as directory:
            tensors, _ = checkpoint.load(Path(directory))
        return {name: tensor.numpy() for name, tensor in tensors.items()}


def class_labels(images: Images) -> tuple[Labels, NDArray[np.int64]]:
    """Class indices of the known identities, and the training rows that have one."""
    pids = images.column("pid")
    rows = images.rows("train")
    rows = rows[pids[rows] >= 0]
    if len(rows) == 0:
        raise DataError("the labelled domain has no training image with a known identity.")
    ids, classes = np.unique(pids[rows], return_inverse=True)
    source_N = np.full(len(pids), -1, np.int64)
    source_N[rows] = classes
    return Labels(source_N, len(ids)), rows


def _interruptible(function: Callable[[], Any]) -> Any:
    """Call in a thread and wait: on the main thread, Ray Train makes Ctrl-C an exit code of 0."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result()


def _cause(error: BaseException) -> BaseException:
    """Our own error inside Ray's, if a worker raised one."""
    failures = getattr(error, "worker_failures", {})
    for failure in [*failures.values(), error.__cause__]:
        seen = failure
        while seen is not None:
            if isinstance(seen, DaalError):
                return type(seen)(str(seen).splitlines()[0])
            seen = getattr(seen, "cause", None) or seen.__cause__
    reason = next((str(failure) for failure in failures.values()), str(error))
    return ClusterError(
        f"training stopped: {reason.strip().splitlines()[-1]}; the same command continues the run, "
        "and -v shows what Ray says."
    )
