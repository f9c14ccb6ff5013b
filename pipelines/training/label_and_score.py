"""Pseudo-labels and scores of a run: Ray tasks on CPUs, jobs of the workers on GPUs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from cluster.estimate import PseudoLabels
from cluster.ray_run import OnProgress, estimate_on_ray
from daal.available_cpus import available_cpus
from daal.config import ClusterConfig
from daal.evaluation import EvaluationResult, evaluate
from pipelines.training.evaluate import both_sides
from pipelines.workers.gpu_jobs import EvaluateJob, stages_on
from pipelines.workers.group import Workers


def estimate_parts(
    parts: Sequence[NDArray[np.float32]],
    config: ClusterConfig,
    eps: Sequence[float | None],
    camids_N: NDArray[np.integer],
    to_source_NP: NDArray[np.float32] | None,
    workers: Workers,
    on_progress: OnProgress | None = None,
) -> list[PseudoLabels]:
    """Pseudo-labels by the features (N, C) of each part of the body.

    Raises the errors of `cluster.estimate.estimate_pseudo_labels`.
    """
    on_gpus = stages_on(workers) if workers.resources.use_gpu else None
    return [
        estimate_on_ray(
            features_NC,
            config,
            eps[part],
            camids_N=camids_N,
            source_N=None if to_source_NP is None else to_source_NP[:, part],
            num_threads=workers.resources.threads_per_task,
            on_gpus=on_gpus,
            on_progress=on_progress,
        )
        for part, features_NC in enumerate(parts)
    ]


def evaluate_features(
    stage: str, images: pa.Table, features_NC: NDArray[np.float32], workers: Workers
) -> EvaluationResult:
    """Market protocol (`daal.evaluation.evaluate`) on the rows of the query and gallery splits.

    Raises:
        DataError: there is no query or no gallery image.
    """
    splits = images["split"].to_numpy(zero_copy_only=False)
    ids = images["pid"].to_numpy(), images["camid"].to_numpy()
    sides = tuple(map(ray.put, both_sides("the target", splits, features_NC, *ids)))
    num_threads = workers.resources.threads_per_task
    if workers.resources.use_gpu:
        found: EvaluationResult = workers.run(EvaluateJob(stage, sides, num_threads))[0]
        return found
    return ray.get(_score.options(name="evaluate").remote(num_threads, *sides))


def _evaluate(num_threads: int, *sides: NDArray[Any]) -> EvaluationResult:
    torch.set_num_threads(min(num_threads, available_cpus()))
    return evaluate(*sides)


_score = ray.remote(num_cpus=1)(_evaluate)
