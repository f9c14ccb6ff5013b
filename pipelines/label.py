"""Pseudo-labels of a features file, without any training."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.estimate import PseudoLabels, estimate_pseudo_labels
from cluster.quality import ClusterQuality, cluster_quality
from cluster.task_graph import OnProgress, estimate_on_ray
from daal.config import ClusterConfig, RayConfig
from daal.errors import DataError
from pipelines.extract import features_array
from pipelines.session import ray_session


class Features(NamedTuple):
    """A features file: `features_NC` float32, and what else it knows of each image, if it does."""

    features_NC: NDArray[np.float32]
    paths: pa.ChunkedArray | None
    pids: NDArray[np.int64] | None
    camids: NDArray[np.int64] | None


def read_features(path: Path, split: str | None = None) -> Features:
    """Rows of a .parquet file with a list column "feature" (as `daal extract` writes), or of a
    two-dimensional .npy array. `split`: only the rows whose column "split" says so.

    Raises:
        DataError: the file isn't such a file, or has no such rows.
    """
    try:
        if path.suffix == ".npy":
            features = np.load(path, allow_pickle=False)
            if features.ndim != 2 or features.dtype.kind != "f":
                raise ValueError(f"it holds {features.dtype} of shape {features.shape}")
            if split is not None:
                raise ValueError("it has no splits")
            return Features(np.ascontiguousarray(features, np.float32), None, None, None)
        table = pq.read_table(path)
        if split is not None:
            table = table.filter(pa.compute.equal(table["split"], split))
        if len(table) == 0:
            raise ValueError("it has no rows" + (f" of split {split}" if split else ""))
        kind = table.schema.field("feature").type
        if not pa.types.is_nested(kind) or not pa.types.is_floating(kind.value_type):
            raise ValueError(f'its column "feature" is {kind}, not a list of numbers')
        lengths = pa.compute.list_value_length(table["feature"]).unique()
        if len(lengths) != 1 or table["feature"].null_count:
            raise ValueError("its features differ in length, or some are missing")
        names = table.column_names
        return Features(
            features_array(table),
            table["path"] if "path" in names else None,
            *(table[name].to_numpy() if name in names else None for name in ("pid", "camid")),
        )
    except (OSError, KeyError, ValueError, EOFError, pa.ArrowException) as error:
        raise DataError(
            f'{path} is not a features file (.parquet with a list column "feature", as daal '
            f"extract writes them, or .npy): {error}."
        ) from error


def label(
    features: Features,
    config: ClusterConfig,
    ray_config: RayConfig | None = None,
    verbose: bool = False,
    on_progress: OnProgress | None = None,
) -> PseudoLabels:
    """Pseudo-labels by this machine's threads (and GPU), or on Ray if `ray_config` is given."""
    if ray_config is None:
        return estimate_pseudo_labels(features.features_NC, config, camids_N=features.camids)
    with ray_session(ray_config, verbose) as resources:
        return estimate_on_ray(
            features.features_NC,
            config,
            camids_N=features.camids,
            cpus_per_task=resources.cpus_per_task,
            on_progress=on_progress,
        )


def labels_table(features: Features, found: PseudoLabels) -> pa.Table:
    """Columns `path` (or `row`) and `pseudo_label`, -1 for outliers."""
    first = (
        {"row": np.arange(len(found.labels))}
        if features.paths is None
        else {"path": features.paths}
    )
    return pa.table({**first, "pseudo_label": found.labels})


def quality(features: Features, found: PseudoLabels) -> ClusterQuality:
    """Figures of the labels, against the file's pids if it knows any."""
    pids = features.pids
    return cluster_quality(found.labels, pids if pids is not None and (pids > 0).any() else None)


def as_dict(features: Features, found: PseudoLabels) -> dict[str, Any]:
    """What `daal label --json` prints."""
    return {
        "eps": found.eps,
        "p": found.p,
        "num_backoffs": found.num_backoffs,
        **quality(features, found).as_dict(),
        "notes": list(found.notes),
        "stages": {name: vars(stage) for name, stage in found.stages.items()},
    }
