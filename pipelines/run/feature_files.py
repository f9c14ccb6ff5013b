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
    """Rows of a .parquet file with a list column "feature" (as `daal extract` writes), of a folder
    of such files (as a run has), or of a two-dimensional .npy array; integers are taken as float32.
    `split`: only the rows whose column
    "split" says so. `needed`: those of pid, camid and split that the caller can't do without;
    others are left out if they can't be read.

    Raises:
        DataError: the file isn't such a file, has no such rows, or a needed column can't be read.
    """
    try:
        if not os.path.isfile(path) and not path.is_dir():  # a pipe would be waited for
            raise ValueError("it is no file" if path.exists() else "it doesn't exist")
        if path.suffix.lower() != ".npy":
            return _read_parquet(path, split, {*needed, *(["split"] if split is not None else [])})
        if split is not None:
            raise ValueError("it is an array and has no splits")
        return Features(path, _read_npy(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not a features file: {getattr(error, 'strerror', None) or error}; give a "
            '.parquet file with a list column "feature", as daal extract writes it, or an .npy '
            "array (N, D)."
        ) from error


def query_and_gallery(what: str, splits: NDArray[Any]) -> list[NDArray[np.int64]]:
    """The query rows, and the gallery's.

    Raises:
        DataError: there are none of either, of `what`.
    """
    sides = []
    for split in ("query", "gallery"):
        sides.append(np.flatnonzero(splits == split))
        if len(sides[-1]) == 0:
            raise DataError(
                f"{what} has no {split} rows, and scores need query and gallery; extract them from "
                "a data set that has both."
            )
    return sides


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


def _read_parquet(path: Path, split: str | None, needed: Collection[str]) -> Features:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ValueError("it is a folder without .parquet files")
    try:
        table = pa.concat_tables(map(_table, files))
    except (pa.ArrowException, OSError) as error:
        is_other = files[0].suffix.lower() != ".parquet"
        hint = " (numpy.save makes an .npy file of an array)" if is_other else ""
        raise ValueError(f"it is no whole Parquet file{hint}") from error
    left_out: list[str] = []

    def wanted(name: str, read: Callable[[pa.ChunkedArray, str], Any]) -> Any:
        """What `read` makes of a column: None if there is none, or it can't and needn't be read."""
        try:
            if name not in table.column_names:
                return None
            return read(_column(table, name, name in needed or name == "split"), name)
        except ValueError as error:
            if name in needed:
                raise
            left_out.append(f"{path}: {error}; the column is left out")
            return None

    splits = wanted("split", _texts)
    if split is not None:
        if splits is None:
            raise ValueError('it has no column "split"')
        table = table.filter(pa.array(splits == split))
        splits = np.full(len(table), split)
    if len(table) == 0:
        raise ValueError("it has no rows" + (f" of split {split}" if split else ""))
    return Features(
        path,
        _feature_column(table),
        table["path"] if "path" in table.column_names else None,
        wanted("pid", partial(_integers, missing=UNKNOWN_PID)),
        wanted("camid", partial(_integers, missing=UNKNOWN_CAMID)),
        splits,
        tuple(left_out),
    )


def _table(path: Path) -> pa.Table:
    with open(path, "rb") as file:
        return pq.ParquetFile(file).read()


def _feature_column(table: pa.Table) -> NDArray[np.float32]:
    if (number := table.column_names.count("feature")) != 1:
        there = ", ".join(map(repr, table.column_names))
        found = f"{number} columns" if number else "no column"
        raise ValueError(f'it has {found} "feature"; it has {there}')
    column, types = table["feature"].combine_chunks(), pa.types
    kind = column.type
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not (is_list and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type))):
        raise ValueError(f'its column "feature" is {kind}, not a list of numbers')
    lengths = pc.list_value_length(column).unique()
    if len(lengths) != 1 or column.null_count:
        raise ValueError("its features differ in length, or some are missing")
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return _float32(flat.reshape(len(column), lengths[0].as_py()))


def _float32(features_NC: NDArray[Any]) -> NDArray[np.float32]:
    if 0 in features_NC.shape:
        raise ValueError(f"its features are of shape {features_NC.shape}")
    with np.errstate(over="ignore"):  # where features are used, infinities are told
        return np.array(features_NC, np.float32, order="C", subok=False)


def _column(table: pa.Table, name: str, is_complete: bool) -> pa.ChunkedArray:
    if (number := table.column_names.count(name)) > 1:
        raise ValueError(f'it has {number} columns "{name}"')
    column = table[name]
    if pa.types.is_floating(column.type):  # pandas writes integers, of which some lack, as 1.0
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if is_complete and column.null_count:
        raise ValueError(f'its column "{name}" lacks {column.null_count} of {len(column)} values')
    return column


def _integers(column: pa.ChunkedArray, name: str, missing: int) -> NDArray[np.int64]:
    types = pa.types
    is_number = types.is_floating(column.type) or types.is_integer(column.type)
    try:
        if not (is_number or types.is_null(column.type)):
            raise ValueError
        return pc.fill_null(column.cast(pa.int64()), missing).to_numpy()
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f'its column "{name}" is {column.type}, not integers') from error


def _texts(column: pa.ChunkedArray, name: str) -> NDArray[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise ValueError(f'its column "{name}" is {column.type}, not words')
    return np.asarray(column.to_numpy(), dtype=str)
