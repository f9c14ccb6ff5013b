"""Pseudo-labels of a run: Ray tasks on CPUs, jobs of the workers on GPUs.

A worker's process has loaded CUDA and all libraries already, and would otherwise be idle.

Shapes: T training images of the target, P parts of the body.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cluster.eps import eps_setting
from cluster.estimate import PseudoLabels
from cluster.given_features import Features, loaded
from cluster.outliers import in_all_parts
from cluster.quality import agreement, cluster_quality
from cluster.ray_run import OnGpus, OnProgress, as_task, estimate_on_ray, result_of
from cluster.source_term import source_distance
from daal.available_cpus import available_cpus
from daal.config import ClusterConfig
from daal.errors import DaalError, LabelError
from pipelines.run.label_health import kept_eps
from pipelines.run.results import KEPT_NOTE, Clusters
from pipelines.workers.group import Worker, Workers


@dataclass(frozen=True)
class ToLabel:
    """What a labelling is made from. `pids_T` are looked at for figures alone, after it."""

    parts: Sequence[Features]  # of the T images
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


def distances_to_source(
    target: Sequence[Features], source: Sequence[Features], num_threads: int
) -> NDArray[np.float32]:
    """How unlike all source images each target image is, part by part (T, P), by a Ray task."""
    task = as_task(_distances).options(name="source distance")
    found: NDArray[np.float32] = result_of(task.remote(target, source, num_threads))
    return found


def _distances(
    target: Sequence[Features], source: Sequence[Features], num_threads: int
) -> NDArray[np.float32]:
    with threadpool_limits(min(num_threads, available_cpus())):
        parts = zip(target, source, strict=True)
        return np.stack([source_distance(loaded(t), loaded(s)) for t, s in parts], axis=1)


@dataclass(frozen=True)
class StageJob:
    """A stage of pseudo-labels: `function(*shared, device, start, stop)` of each row block."""

    stage: str
    function: Callable[..., Any]
    blocks: tuple[tuple[int, int], ...]
    shared: tuple[ray.ObjectRef[Any], ...]

    def run(self, worker: Worker) -> list[Any] | DaalError:
        """The values of this worker's blocks: number rank, rank + world_size, ...

        A DaalError is returned: raising it would end the workers, and a run without new labels may
        keep its last ones.
        """
        mine = self.blocks[worker.rank :: worker.world_size]
        if not mine:
            return []
        shared, num_threads = ray.get(list(self.shared)), torch.get_num_threads()
        values = []
        try:
            for number, block in enumerate(mine):
                worker.reach(self.stage, number)
                values.append(self.function(*shared, worker.device.type, *block))
        except DaalError as error:
            return error
        finally:
            torch.set_num_threads(num_threads)  # of the next training
        return values


def stages_on(workers: Workers) -> OnGpus:
    """For `cluster.ray_run.estimate_on_ray`: the workers' GPUs."""

    def on_gpus(
        stage: str, function: Callable[..., Any], blocks: Sequence[tuple[int, int]], *shared: Any
    ) -> list[Any]:
        # A worker without a block doesn't fetch them.
        references = tuple(x if isinstance(x, ray.ObjectRef) else ray.put(x) for x in shared)
        by_rank = workers.run(StageJob(stage, function, tuple(blocks), references))
        values: list[Any] = [None] * len(blocks)
        for rank, found in enumerate(by_rank):
            if isinstance(found, DaalError):
                raise found
            values[rank :: len(by_rank)] = found
        return values

    return on_gpus
