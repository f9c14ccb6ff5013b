"""Pseudo-labels of a features file, without any training."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.estimate import PseudoLabels, estimate_pseudo_labels
from cluster.quality import ClusterQuality, cluster_quality
from cluster.task_graph import OnProgress, estimate_on_ray
from daal.config import ClusterConfig, RayConfig
from daal.errors import ConfigError, DataError
from daal.load_config import apply_overrides
from pipelines.extract import features_array
from pipelines.session import ray_session

EPS_RULES = {"p": "p", "q": "q", "eps": "fixed"}  # setting of `cluster` -> the rule that uses it


class Features(NamedTuple):
    """A features file: `features_NC` float32, and what else it knows of each image, if it does."""

    features_NC: NDArray[np.float32]
    paths: pa.ChunkedArray | None
    pids: NDArray[np.int64] | None
    camids: NDArray[np.int64] | None


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


def read_features(path: Path, split: str | None = None) -> Features:
    """Rows of a .parquet file with a list column "feature" (as `daal extract` writes), or of a
    two-dimensional .npy array; integers are taken as float32. `split`: only the rows whose column
    "split" says so.

    Raises:
        DataError: the file isn't such a file, or has no such rows.
    """
    try:
        if path.suffix == ".npy":
            with open(path, "rb") as stream:  # np.load would also read .npz archives
                features = np.lib.format.read_array(stream, allow_pickle=False)
            if features.ndim != 2 or features.dtype.kind not in "fiu":
                raise ValueError(f"it holds {features.dtype} of shape {features.shape}")
            if split is not None:
                raise ValueError("it has no splits")
            return Features(np.ascontiguousarray(features, np.float32), None, None, None)
        table = pq.read_table(path)
        if split is not None:
            table = table.filter(pc.equal(table["split"], split))
        if len(table) == 0:
            raise ValueError("it has no rows" + (f" of split {split}" if split else ""))
        kind = table.schema.field("feature").type
        if not _is_list_of_numbers(kind):
            raise ValueError(f'its column "feature" is {kind}, not a list of numbers')
        lengths = pc.list_value_length(table["feature"]).unique()
        if len(lengths) != 1 or table["feature"].null_count:
            raise ValueError("its features differ in length, or some are missing")
        names = table.column_names
        return Features(
            features_array(table),
            table["path"] if "path" in names else None,
            *(_integers(table, name) if name in names else None for name in ("pid", "camid")),
        )
    except (OSError, KeyError, ValueError, EOFError, pa.ArrowException) as error:
        raise DataError(
            f'{path} is not a features file (.parquet with a list column "feature", as daal '
            f"extract writes them, or .npy): {error}."
        ) from error


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    types = pa.types
    return (
        types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    ) and bool(types.is_floating(kind.value_type) or types.is_integer(kind.value_type))


def _integers(table: pa.Table, name: str) -> NDArray[np.int64]:
    column = table[name]
    if not pa.types.is_integer(column.type):
        raise ValueError(f'its column "{name}" is {column.type}, not integers')
    if column.null_count:
        raise ValueError(f'its column "{name}" lacks {column.null_count} of {len(column)} values')
    numbers: NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    return numbers


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
    # Nothing is trained or read here, so don't ask the cluster for the CPUs and GPUs of that.
    ray_config = ray_config.model_copy(update={"num_workers": 1, "data_cpus": 1})
    with ray_session(ray_config, verbose) as resources:
        return estimate_on_ray(
            features.features_NC,
            config,
            camids_N=features.camids,
            cpus_per_task=resources.cpus_per_node,
            gpus_per_task=1 if resources.use_gpu else 0,
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


def write_whole(table: pa.Table, out: Path) -> None:
    """Write a .parquet file aside and rename it, so that it is never there by half."""
    if out.exists() and not out.is_file():  # /dev/null and its like must not be replaced
        pq.write_table(table, out, compression="zstd")
        return
    out = out.resolve()  # a link stays a link, and what it leads to is replaced
    aside = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        pq.write_table(table, aside, compression="zstd")
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)


def quality(features: Features, found: PseudoLabels) -> ClusterQuality:
    """Figures of the labels, against the file's pids if it knows any."""
    return cluster_quality(found.labels, features.pids)


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
