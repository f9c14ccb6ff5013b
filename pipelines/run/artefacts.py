"""What stages leave in a run folder, as bytes: checkpoints, features, pseudo-labels, JSON."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
import torch
from numpy.typing import NDArray

from daal import checkpoint
from pipelines.run.folder import Contents

KNOWN = ["path", "pid", "camid", "split", "domain"]  # what a features file says of each image


def table_bytes(table: pa.Table) -> pa.Buffer:
    """Parquet, readable by anything: features are plain fixed-size lists."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def read_table(data: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(data))


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def checkpoint_files(folder: str) -> list[str]:
    return [f"{folder}/{name}" for name in ("weights.safetensors", "checkpoint.json")]


def checkpoint_bytes(
    folder: str, weights: dict[str, NDArray[Any]], metadata: dict[str, Any]
) -> Contents:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "checkpoint"
        tensors = {name: torch.tensor(array) for name, array in weights.items()}
        checkpoint.save(directory, tensors, metadata)
        return {
            name: (directory / Path(name).name).read_bytes() for name in checkpoint_files(folder)
        }


def read_checkpoint(folder: str, contents: Mapping[str, bytes]) -> dict[str, NDArray[Any]]:
    return safetensors.numpy.load(contents[f"{folder}/weights.safetensors"])


def parts_table(images: pa.Table, name: str, values_NP: NDArray[Any]) -> pa.Table:
    """One row per image, a column per part: `name` of the whole body, `name_1`... of stripes."""
    columns = {
        name if part == 0 else f"{name}_{part}": column for part, column in enumerate(values_NP.T)
    }
    return pa.table({"path": images["path"], **columns})


def read_parts(data: bytes) -> NDArray[Any]:
    """The values (N, P) of `parts_table`."""
    table = read_table(data).drop_columns(["path"])
    return np.stack([column.to_numpy() for column in table.columns], axis=1)


def features_table(images: pa.Table, features: NDArray[np.float32]) -> pa.Table:
    """A features file's rows: what is known of each image, and its feature as a fixed-size list."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    known = images.select(KNOWN)
    return known.replace_schema_metadata(None).append_column("feature", lists)


def features_array(table: pa.Table) -> NDArray[np.float32]:
    """The feature column as (N, C) float32."""
    column = table.column("feature").combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat.reshape(len(column), -1), dtype=np.float32)
