"""A table of images, CSV or Parquet, to records.

| column | what it holds | if it is missing |
|---|---|---|
| `path` | a file, from the table's folder; or a URI | `image` is needed |
| `image` | the bytes of the image (Parquet only) | `path` is needed |
| `split` | train, query or gallery | train |
| `pid`, `camid`, `tracklet` | whole numbers, or names, which are numbered from 1 | unknown |
| `time` | seconds, numbers of frames, or timestamps | unknown |
| `x`, `y`, `w`, `h` | a box in pixels that is cut out of the image | the whole image |

An empty field, or `-` in CSV, means unknown. Other columns are passed over.
"""

import os
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from pyarrow import fs

from daal.data.layouts import check_characters, in_order
from daal.data.places import URI, Place, is_bucket
from daal.data.records import BOX, SPLITS, UNKNOWN, UNKNOWN_CAMID, UNKNOWN_PID, records_of
from daal.errors import DataError, first_line

COLUMNS = ("path", "split", "pid", "camid", "tracklet", "time", *BOX)
IMAGE = "image"  # the column of embedded bytes
LARGEST = 2**31 - 1


def table_records(root: str) -> pa.Table:
    """RECORDS of a table's rows: train, query, gallery, each sorted by path.

    Raises DataError when the table can't be read, has neither paths nor images, has a column of
    another type, names a file outside of its folder, or has an image twice.
    """
    folder, name = folder_of(root)
    place = Place(folder, "The table's folder")
    columns, has_images = _read(place, name)
    num_rows = columns.num_rows
    if num_rows == 0:
        raise DataError(f"{root} has no rows; give a table with a row for each image.")
    known = _boxes(root, columns)
    if "path" in columns.column_names:
        files = _texts(root, columns, "path")
    else:
        files = pa.array([f"{row:09d}" for row in range(num_rows)])
    if has_images:
        known |= {"file": name, "offset": pa.array(np.arange(num_rows))}
    else:
        _check_files(place, root, files.to_pylist())
    names = files
    if "w" in known:
        box = pc.binary_join_element_wise(*(known[side].cast(pa.string()) for side in BOX), ",")
        names = pc.coalesce(pc.binary_join_element_wise(files, box, "#"), files)
        known.setdefault("file", files)
    return records_of_columns(place, root, names, columns, known)


def records_of_columns(
    place: Place, root: str, names: pa.Array, columns: pa.Table, known: dict[str, Any]
) -> pa.Table:
    """RECORDS of rows whose images are called `names`, with what the columns say of them and what
    is `known` of where they are."""
    check_characters(place, names.to_pylist())
    if len(pc.unique(names)) < len(names):
        twice = next(name for name, count in Counter(names.to_pylist()).items() if count > 1)
        raise DataError(f"{root} has {twice!a} more than once; remove the row, or rename one.")
    if "split" in columns.column_names:
        splits = _texts(root, columns, "split")
        known["split"] = pc.if_else(pc.equal(splits, ""), "train", splits)
        if odd := sorted(set(pc.unique(known["split"]).to_pylist()) - set(SPLITS)):
            raise DataError(
                f"{root} has {odd[0]!a} as a split; write {', '.join(SPLITS)}, or leave it empty "
                "for train."
            )
    for name, unknown in (("pid", UNKNOWN_PID), ("camid", UNKNOWN_CAMID), ("tracklet", UNKNOWN)):
        if name in columns.column_names:
            known[name] = _numbers(root, columns, name, unknown)
    if "time" in columns.column_names:
        known["time"] = _times(root, columns)
    return in_order(place, records_of(names, **known))


def folder_of(root: str) -> tuple[str, str]:
    """The folder that a file lies in, and its name; a URI's options stay with the folder."""
    path, mark, options = root.partition("?") if is_bucket(root) else (root, "", "")
    folder, _, name = path.rpartition("/")
    return (folder or ("/" if path.startswith("/") else ".")) + mark + options, name


def embedded(place: Place, name: str, row_group: int) -> list[bytes]:
    """The images of one row group of a Parquet file."""
    with place.filesystem.open_input_file(place.path(name)) as file:
        table = pq.ParquetFile(file).read_row_group(row_group, columns=[IMAGE])
    return [value or b"" for value in table[IMAGE].to_pylist()]


def _read(place: Place, name: str) -> tuple[pa.Table, bool]:
    """The columns that are known, and whether the table has the images themselves."""
    shown = place / name
    if not place.exists(name, fs.FileType.File):
        raise DataError(f"There is no table {shown}; give a .csv or .parquet file.")
    try:
        with place.filesystem.open_input_file(place.path(name)) as file:
            if not name.lower().endswith(".csv"):
                parquet = pq.ParquetFile(file)
                schema = parquet.schema_arrow
                kinds = dict(zip(schema.names, schema.types, strict=True))
                table = parquet.read(columns=[column for column in COLUMNS if column in kinds])
            else:
                texts = dict.fromkeys(("path", "split"), pa.string())
                options = pa_csv.ConvertOptions(
                    column_types=texts, null_values=["", "-"], strings_can_be_null=True
                )
                table = pa_csv.read_csv(file, convert_options=options)
                kinds = {}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{shown} can't be read as a table ({first_line(error).rstrip('.')}); give a .csv file "
            "with a line of column names, or a .parquet file."
        ) from None
    has_images = IMAGE in kinds
    if has_images and kinds[IMAGE] not in (pa.binary(), pa.large_binary()):
        raise DataError(
            f"the column {IMAGE} of {shown} is {kinds[IMAGE]}; make it bytes (binary), or use path."
        )
    if not has_images and "path" not in table.column_names:
        raise DataError(
            f"{shown} has no column path; name the column with the images' files so, or give bytes "
            f"in a column {IMAGE} of a Parquet file."
        )
    return table.select([name for name in table.column_names if name in COLUMNS]), has_images


def _check_files(place: Place, root: str, files: list[str]) -> None:
    """Raise DataError for files that lie outside of the table's folder, and odd URIs."""
    folders_seen: set[str] = set()
    for file in files:
        if is_bucket(file):
            continue
        if URI.match(file):
            raise DataError(
                f"{root} names {file!a}, a URI that images aren't read from; use s3://, gs:// or "
                "paths from the table's folder."
            )
        folder = os.path.dirname(file)
        if not file or os.path.isabs(file) or ".." in file.split("/"):
            raise DataError(
                f"{root} names {file!a}, which isn't in the table's folder; move the table above "
                "the images, and write paths from its folder."
            )
        if place.is_local:
            if folder not in folders_seen:
                folders_seen.add(folder)
                place.refuse_outside(folder)
            if os.path.islink(place.path(file)):
                place.refuse_outside(file)


def _texts(root: str, columns: pa.Table, name: str) -> pa.Array:
    """A column of text; "" where there is none."""
    column = _plain(columns[name])
    if not _is_text(column.type):
        raise DataError(f"the column {name} of {root} is {column.type}; make it text (strings).")
    return column.cast(pa.string()).fill_null("").combine_chunks()


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    is_coded = pa.types.is_dictionary(column.type)
    return column.cast(column.type.value_type) if is_coded else column


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.null())


def _numbers(root: str, columns: pa.Table, name: str, unknown: int) -> pa.Array:
    """Whole numbers of a column, or numbers from 1 for its names in alphabetical order."""
    column = _plain(columns[name])
    if _is_text(column.type):
        texts = column.cast(pa.string())
        known = sorted(set(pc.unique(texts).to_pylist()) - {None, ""})
        at = pc.index_in(texts, pa.array(known, pa.string()))
        return pc.add(at, 1).fill_null(unknown)
    if pa.types.is_floating(column.type):  # what pandas makes of whole numbers with gaps
        column = pc.if_else(pc.is_nan(column), None, column)
    try:
        numbers = column.cast(pa.int64()).fill_null(unknown)
        if pa.types.is_boolean(column.type) or pa.types.is_temporal(column.type):
            raise pa.ArrowInvalid
    except pa.ArrowException:
        raise DataError(
            f"the column {name} of {root} is {column.type}; make it whole numbers, or names."
        ) from None
    if pc.min(numbers).as_py() < unknown or pc.max(numbers).as_py() > LARGEST:
        raise DataError(
            f"the column {name} of {root} has numbers below {unknown} or above {LARGEST:,}; number "
            "them again, or write them as text."
        )
    return numbers


def _times(root: str, columns: pa.Table) -> pa.ChunkedArray:
    """Milliseconds."""
    column = columns["time"]
    try:
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
        elif not pa.types.is_boolean(column.type):
            seconds = column.cast(pa.float64())
            seconds = pc.if_else(pc.is_nan(seconds), None, seconds)
            column = pc.round(pc.multiply(seconds, 1000.0)).cast(pa.int64())
        times = column.fill_null(UNKNOWN)
    except (pa.ArrowException, TypeError):
        raise DataError(
            f"the column time of {root} is {column.type}; make it seconds, numbers of frames or "
            "timestamps."
        ) from None
    if pc.min(times).as_py() < UNKNOWN:
        raise DataError(f"the column time of {root} has times below 0; give them from 0 up.")
    return times


def _boxes(root: str, columns: pa.Table) -> dict[str, pa.Array]:
    """The sides of each row's box, to the nearest pixel; null where the whole image is meant.
    Nothing if the table has no boxes."""
    there = [name for name in BOX if name in columns.column_names]
    if not there:
        return {}
    if len(there) < len(BOX):
        absent = ", ".join(name for name in BOX if name not in there)
        raise DataError(f"{root} has a box without {absent}; give x, y, w and h, or none of them.")
    try:
        boxes_4N = np.rint([columns[name].cast(pa.float64()).to_numpy() for name in BOX])
        whole_N = np.isnan(boxes_4N).any(axis=0)
        sides = [pa.array(side_N, mask=whole_N).cast(pa.int32()) for side_N in boxes_4N]
    except pa.ArrowException as error:
        raise DataError(
            f"{root} has a box that isn't numbers of pixels ({first_line(error)}); make x, y, w, h "
            "numbers."
        ) from None
    return dict(zip(BOX, sides, strict=True))
