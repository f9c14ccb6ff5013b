"""Pseudo-labels and scores of a run: Ray tasks on CPUs, jobs of the workers on GPUs.

Shapes: T training images of the target, N all its images, C channels, P parts of the body.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from cluster.eps import eps_setting
from cluster.estimate import PseudoLabels
from cluster.outliers import in_all_parts
from cluster.quality import agreement, cluster_quality
from cluster.ray_run import OnProgress, estimate_on_ray
from daal.available_cpus import available_cpus
from daal.config import ClusterConfig
from daal.errors import LabelError
from daal.evaluation import EvaluationResult, evaluate
from pipelines.run.label_health import kept_eps
from pipelines.run.results import KEPT_NOTE, Clusters
from pipelines.training.evaluate import both_sides
from pipelines.workers.gpu_jobs import EvaluateJob, stages_on
from pipelines.workers.group import Workers


@dataclass(frozen=True)
class ToLabel:
    """What a labelling is made from. `pids_T` are looked at for figures alone, after it."""

    parts: Sequence[NDArray[np.float32]]  # (T, C) each
    pids_T: NDArray[np.int64]
    camids_T: NDArray[np.int64]
    to_source_TP: NDArray[np.float32] | None = None  # UDAP's distances, if they count
    previous_TP: NDArray[np.int64] | None = None  # the labelling before


def label_images(
    given: ToLabel,
    config: ClusterConfig,
    earlier: Sequence[Clusters],
    workers: Workers,
    on_progress: OnProgress | None = None,
) -> tuple[NDArray[np.int64], Clusters]:
    """Labels (T, P) with -1 for outliers, and their figures; `earlier` are those of the labellings
    before.

    If there is no cluster, the labels of the labelling before are kept.

    Raises:
        LabelError: there is no cluster, and no labelling before.
    """
    previous_TP = given.previous_TP
    try:
        found = _estimate_parts(given, config, kept_eps(earlier, config), workers, on_progress)
        labels_TP = in_all_parts(np.stack([part.labels for part in found], 1), eps_setting(config))
    except LabelError as error:
        if previous_TP is None:
            raise
        labels_TP = previous_TP
        figures: dict[str, Any] = {
            "eps": earlier[-1].eps,
            "notes": (f"{KEPT_NOTE}: {error}",),
            "kept": True,
        }
    else:
        figures = {
            "eps": [part.eps for part in found],
            "first_eps": [part.first_eps for part in found],
            "notes": tuple(note for part in found for note in part.notes),
            "silhouette": found[0].silhouette,
            "cross_camera_silhouette": found[0].cross_camera_silhouette,
        }
        if previous_TP is not None:
            figures["agreement"] = agreement(previous_TP[:, 0], labels_TP[:, 0])
    known = given.pids_T if (given.pids_T > 0).any() else None
    quality = cluster_quality(labels_TP[:, 0], known, given.camids_T)
    return labels_TP, Clusters(**figures, **quality.as_dict())


def _estimate_parts(
    given: ToLabel,
    config: ClusterConfig,
    eps: Sequence[float] | None,
    workers: Workers,
    on_progress: OnProgress | None,
) -> list[PseudoLabels]:
    on_gpus = stages_on(workers) if workers.resources.use_gpu else None
    to_source_TP = given.to_source_TP
    return [
        estimate_on_ray(
            features_TC,
            config,
            None if eps is None else eps[part],
            camids_N=given.camids_T,
            source_N=None if to_source_TP is None else to_source_TP[:, part],
            num_threads=workers.resources.threads_per_task,
            on_gpus=on_gpus,
            on_progress=on_progress,
        )
        for part, features_TC in enumerate(given.parts)
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
