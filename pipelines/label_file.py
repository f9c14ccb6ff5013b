"""Pseudo-labels of a features file, without any training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.estimate import PseudoLabels, estimate_pseudo_labels
from cluster.quality import cluster_quality
from cluster.task_graph import OnProgress, estimate_on_ray
from daal.config import ClusterConfig, RayConfig
from daal.errors import ConfigError, LabelError
from daal.load_config import apply_overrides
from pipelines.feature_files import Features
from pipelines.session import ray_session

EPS_RULES = {"p": "p", "q": "q", "eps": "fixed"}  # setting of `cluster` -> the rule that uses it


def with_eps_rule(overrides: Sequence[str]) -> list[str]:
    """KEY=VALUE settings with cluster.eps_rule among them: as given, or the rule that uses the
    given one of cluster.p, cluster.q and cluster.eps, or else q, which holds for sets of any size.

    Raises:
        ConfigError: settings of two rules, and no word on which is meant.
    """
    # Merged first, as cluster.p=1e-3 may also be written "cluster={p: 1e-3}".
    section = apply_overrides({}, overrides).get("cluster")
    settings = section if isinstance(section, dict) else {}
    if "eps_rule" in settings:
        return list(overrides)
    given = [name for name in EPS_RULES if name in settings]
    if len(given) > 1:
        rules = ", ".join(f"cluster.eps_rule={EPS_RULES[name]}" for name in given)
        raise ConfigError(
            f"{' and '.join(f'cluster.{name}' for name in given)} belong to different rules for "
            f"eps; give only one of them, or say which rule is meant ({rules})."
        )
    rule = EPS_RULES[given[0]] if given else "q"
    return [f"cluster.eps_rule={rule}", *overrides]


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
        # Nothing is trained or read here, so don't ask the cluster for the CPUs and GPUs of that.
        ray_config = ray_config.model_copy(update={"num_workers": 1, "data_cpus": 1})
        with ray_session(ray_config, verbose) as resources:
            return estimate_on_ray(
                features.features_NC,
                config,
                camids_N=features.camids,
                num_threads=resources.threads_per_task,
                gpus_per_task=1 if resources.use_gpu else 0,
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
    """What `daal label --json` prints; figures are against the file's pids if it knows any."""
    return {
        "eps": found.eps,
        "p": found.p,
        "num_backoffs": found.num_backoffs,
        **cluster_quality(found.labels, features.pids).as_dict(),
        "notes": list(found.notes),
        "stages": {name: vars(stage) for name, stage in found.stages.items()},
    }
