"""Features files, as they come from outside: Parquet with a list column "feature", or .npy."""

import os
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from daal.data.records import UNKNOWN_CAMID, UNKNOWN_PID
from daal.errors import DataError

# Files of others, by ending: what each is, and what of it numpy.save would take.
OTHER_FILES = (
    ((".pt", ".pth", ".ckpt"), "a torch file", "torch.load({}).float().numpy()"),
    ((".npz",), "an archive of arrays", "numpy.load({})['NAME']"),
    ((".csv",), "text", "numpy.loadtxt({}, delimiter=',')"),
    ((".tsv", ".txt"), "text", "numpy.loadtxt({})"),
    ((".safetensors",), "a file of tensors", "safetensors.numpy.load_file({})['NAME']"),
    ((".pkl", ".pickle", ".h5", ".hdf5", ".mat"), "of another format", "ARRAY"),
)


class Features(NamedTuple):
    """A features file: `features_NC` float32, and what else it knows of each image, if it does.

    A missing pid or camid is the value that `daal.data.records` has for unknown ones. `left_out`
    gives, for each useful column that can't be read, the reason in one sentence.
    """

    path: Path
    features_NC: NDArray[np.float32]
    paths: pa.ChunkedArray | None = None
    pids: NDArray[np.int64] | None = None
    camids: NDArray[np.int64] | None = None
    splits: NDArray[Any] | None = None
    left_out: tuple[str, ...] = ()


def read_features(path: Path, split: str | None = None, needed: Collection[str] = ()) -> Features:
    """Rows of a .parquet file with a list column "feature" (as `daal extract` writes), or of a
    two-dimensional .npy array; integers are taken as float32. `split`: only the rows whose column
    "split" says so. `needed`: those of pid, camid and split that the caller can't do without;
    others are left out if they can't be read.

    Raises:
        DataError: the file isn't such a file, has no such rows, or a needed column can't be read.
    """
    try:
        if not os.path.isfile(path):  # a pipe would be waited for
            raise ValueError("it is no file" if path.exists() else "it doesn't exist")
        if path.suffix.lower() == ".npy":
            if split is not None:
                raise ValueError("it is an array and has no splits")
            return Features(path, _read_npy(path))
        for endings, what, array in OTHER_FILES:
            if path.suffix.lower() in endings:
                code = f"numpy.save('features.npy', {array.format(repr(path.name))})"
                raise ValueError(f"it is {what}, of which {code} makes one")
        return _read_parquet(path, split, {*needed, *(["split"] if split is not None else [])})
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
        flat = ", and numpy.save(..., x.reshape(len(x), -1)) makes it two" if array.ndim > 2 else ""
        raise ValueError(f"it holds {array.dtype} of shape {array.shape}{flat}")
    return _float32(array)


def _read_parquet(path: Path, split: str | None, needed: Collection[str]) -> Features:
    with open(path, "rb") as file:
        try:
            table = pq.ParquetFile(file).read()
        except (pa.ArrowException, OSError) as error:
            raise ValueError("it is no whole Parquet file") from error
    for name in ("feature", *(["split"] if split is not None else [])):
        if (number := table.column_names.count(name)) != 1:
            found = f"{number} columns" if number else "no column"
            there = ", ".join(map(repr, table.column_names))
            raise ValueError(f'it has {found} "{name}"; it has {there}')
    left_out: list[str] = []

    def wanted(name: str, read: Callable[[pa.ChunkedArray, str], Any]) -> Any:
        """What `read` makes of a column: None if there is none, or it can't and needn't be read."""
        try:
            column = _column(table, name, is_complete=name in needed or name == "split")
            return None if column is None else read(column, name)
        except ValueError as error:
            if name in needed:
                raise
            left_out.append(f"{path}: {error}; the column is left out")
            return None

    splits = wanted("split", _texts)
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
        wanted("pid", partial(_integers, missing=UNKNOWN_PID)),
        wanted("camid", partial(_integers, missing=UNKNOWN_CAMID)),
        splits,
        tuple(left_out),
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


def _integers(column: pa.ChunkedArray, name: str, missing: int) -> NDArray[np.int64]:
    # pandas writes integers, of which some are missing, as 1.0
    types = pa.types
    is_float = types.is_floating(column.type)
    no_integers = ValueError(f'its column "{name}" is {column.type}, not integers')
    if not (is_float or types.is_integer(column.type) or types.is_null(column.type)):
        raise no_integers
    try:
        return pc.fill_null(column.cast(pa.int64()), missing).to_numpy()
    except pa.ArrowException as error:
        if is_float:
            raise no_integers from error
        raise ValueError(f'its column "{name}" has numbers beyond 64 bits') from error


def _texts(column: pa.ChunkedArray, name: str) -> NDArray[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise ValueError(f'its column "{name}" is {column.type}, not words')
    return np.asarray(column.to_numpy(), dtype=str)


def _column(table: pa.Table, name: str, is_complete: bool) -> pa.ChunkedArray | None:
    if name not in table.column_names:
        return None
    if table.column_names.count(name) > 1:
        raise ValueError(f'it has {table.column_names.count(name)} columns "{name}"')
    column = table[name]
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if is_complete and column.null_count:
        raise ValueError(f'its column "{name}" lacks {column.null_count} of {len(column)} values')
    return column
