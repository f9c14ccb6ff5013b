"""What stages leave in a run folder, as bytes: checkpoints, features, pseudo-labels, JSON."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
import torch
from numpy.typing import NDArray

from daal import checkpoint

Contents = dict[str, bytes]  # file name -> content


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


def read_checkpoint(folder: str, contents: Contents) -> dict[str, NDArray[Any]]:
    weights: dict[str, NDArray[Any]] = safetensors.numpy.load(
        contents[f"{folder}/weights.safetensors"]
    )
    return weights


def pseudo_labels_table(images: pa.Table, pseudo_labels_N: NDArray[np.int64]) -> pa.Table:
    """One row per target image; -1 is an outlier, or an image that isn't for training."""
    return pa.table({"path": images["path"], "pseudo_label": pseudo_labels_N})
