"""Pseudo-labels of a features file, without any training."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.estimate import ALONE, PseudoLabels, estimate_pseudo_labels
from cluster.quality import cluster_quality
from cluster.ray_run import OnProgress, estimate_on_ray, on_free_gpus
from daal.config import ClusterConfig, Config, RayConfig
from daal.errors import LabelError
from daal.load_config import Origins, apply_overrides, check_config
from pipelines.run.feature_files import Features
from pipelines.workers.session import ray_session


def label_config(overrides: Iterable[str] = ()) -> Config:
    """The settings of `daal label`: as `cluster.estimate.ALONE`, unless `overrides` say otherwise.

    Raises:
        ConfigError: one line per mistake.
    """
    origins: Origins = {}
    values = {"cluster": ALONE.model_dump(exclude_unset=True)}
    return check_config(apply_overrides(values, overrides, origins), origins)


def label(
    features: Features,
    config: ClusterConfig,
    ray_config: RayConfig | None = None,
    verbose: bool = False,
    on_progress: OnProgress | None = None,
) -> PseudoLabels:
    """Pseudo-labels by this machine's threads (and GPU), or on Ray if `ray_config` is given.

    Raises LabelError, naming the file, if there are none to be found.
    """
    try:
        if ray_config is None:
            return estimate_pseudo_labels(features.features_NC, config, camids_N=features.camids)
        # Nothing is trained or read here, so one worker's resources are enough, and no node is
        # waited for.
        least = {"num_workers": 1, "data_cpus": 1, "wait_minutes": 0}
        ray_config = ray_config.model_copy(update=least)
        with ray_session(ray_config, verbose) as resources:
            return estimate_on_ray(
                features.features_NC,
                config,
                camids_N=features.camids,
                num_threads=resources.threads_per_task,
                on_gpus=on_free_gpus if resources.use_gpu else None,
                on_progress=on_progress,
            )
    except LabelError as error:
        raise LabelError(f"{features.path}: {error}") from error


def labels_table(features: Features, found: PseudoLabels) -> pa.Table:
    """Columns `path` (or `row`) and `pseudo_label`, -1 for outliers."""
    first = (
        {"row": np.arange(len(found.labels))}
        if features.paths is None
        else {"path": features.paths}
    )
    return pa.table({**first, "pseudo_label": found.labels})


def as_dict(features: Features, found: PseudoLabels) -> dict[str, Any]:
    """What `daal label --json` prints; compared with the file's pids if it has any."""
    return {
        "eps": found.eps,
        "p": found.p,
        "num_backoffs": found.num_backoffs,
        "silhouette": found.silhouette,
        "cross_camera_silhouette": found.cross_camera_silhouette,
        **cluster_quality(found.labels, features.pids, features.camids).as_dict(),
        "notes": list(found.notes),
        "stages": {name: vars(stage) for name, stage in found.stages.items()},
    }
