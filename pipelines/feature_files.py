"""Features files, as they come from outside: Parquet with a list column "feature", or .npy."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from daal.errors import DataError


class Features(NamedTuple):
    """A features file: `features_NC` float32, and what else it knows of each image, if it does."""

    path: Path
    features_NC: NDArray[np.float32]
    paths: pa.ChunkedArray | None = None
    pids: NDArray[np.int64] | None = None
    camids: NDArray[np.int64] | None = None
    splits: NDArray[Any] | None = None


def read_features(path: Path, split: str | None = None) -> Features:
    """Rows of a .parquet file with a list column "feature" (as `daal extract` writes), or of a
    two-dimensional .npy array; integers are taken as float32. `split`: only the rows whose column
    "split" says so.

    Raises:
        DataError: the file isn't such a file, or has no such rows.
    """
    try:
        if not os.path.isfile(path):  # a pipe would be waited for
            raise ValueError("it is no file" if path.exists() else "it doesn't exist")
        if path.suffix == ".npy":
            if split is not None:
                raise ValueError("it is an array and has no splits")
            return Features(path, _read_npy(path))
        return _read_parquet(path, split)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not a features file: {getattr(error, 'strerror', None) or error}; give a "
            '.parquet file with a list column "feature", as daal extract writes it, or an .npy '
            "array (N, D)."
        ) from error


def _read_npy(path: Path) -> NDArray[np.float32]:
    try:
        # Not np.load, which reads archives too. Mapped, no more memory is claimed than the file
        # has bytes, whatever its header says.
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OverflowError, SyntaxError, TypeError) as error:
        raise ValueError("it holds no whole array of numbers") from error
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise ValueError(f"it holds {array.dtype} of shape {array.shape}")
    return _float32(array)


def _read_parquet(path: Path, split: str | None) -> Features:
    with open(path, "rb") as file:
        try:
            table = pq.ParquetFile(file).read()
        except (pa.ArrowException, OSError) as error:
            raise ValueError("it is no whole Parquet file") from error
    for name in ("feature", *(["split"] if split is not None else [])):
        if table.column_names.count(name) != 1:
            raise ValueError(f'it has {table.column_names.count(name)} columns "{name}"')
    splits = _texts(table, "split")
    if split is not None:
        table = table.filter(pa.array(splits == split))
        splits = np.full(len(table), split)
    if len(table) == 0:
        raise ValueError("it has no rows" + (f" of split {split}" if split else ""))
    kind = table.schema.field("feature").type
    if not _is_list_of_numbers(kind):
        raise ValueError(f'its column "feature" is {kind}, not a list of numbers')
    column = table["feature"].combine_chunks()
    lengths = pc.list_value_length(column).unique()
    if len(lengths) != 1 or column.null_count:
        raise ValueError("its features differ in length, or some are missing")
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return Features(
        path,
        _float32(flat.reshape(len(column), lengths[0].as_py())),
        table["path"] if "path" in table.column_names else None,
        _integers(table, "pid"),
        _integers(table, "camid"),
        splits,
    )


def _float32(features_NC: NDArray[Any]) -> NDArray[np.float32]:
    if 0 in features_NC.shape:
        raise ValueError(f"its features are of shape {features_NC.shape}")
    with np.errstate(over="ignore"):  # where features are used, infinities are told
        return np.array(features_NC, np.float32, order="C", subok=False)


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    types = pa.types
    return (
        types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    ) and bool(types.is_floating(kind.value_type) or types.is_integer(kind.value_type))


def _integers(table: pa.Table, name: str) -> NDArray[np.int64] | None:
    column = _column(table, name)
    if column is None:
        return None
    if not pa.types.is_integer(column.type):
        raise ValueError(f'its column "{name}" is {column.type}, not integers')
    try:
        return column.cast(pa.int64()).to_numpy()
    except pa.ArrowException as error:
        raise ValueError(f'its column "{name}" has numbers beyond 64 bits') from error


def _texts(table: pa.Table, name: str) -> NDArray[Any] | None:
    column = _column(table, name)
    if column is None:
        return None
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise ValueError(f'its column "{name}" is {column.type}, not words')
    return np.asarray(column.to_numpy(), dtype=str)


def _column(table: pa.Table, name: str) -> pa.ChunkedArray | None:
    if name not in table.column_names:
        return None
    if table.column_names.count(name) > 1:
        raise ValueError(f'it has {table.column_names.count(name)} columns "{name}"')
    column = table[name]
    if column.null_count:
        raise ValueError(f'its column "{name}" lacks {column.null_count} of {len(column)} values')
    return column
