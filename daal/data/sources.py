"""Image sets of any kind: which images there are, and the bytes of each.

A kind of set is one function from its root to RECORDS.
"""

import io
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray
from PIL import Image

from daal.config import DatasetConfig
from daal.data import images
from daal.data.layouts import load_records
from daal.data.places import SCHEMES, Place, is_bucket, joined, opened
from daal.data.records import BOX, SPLITS, records_of
from daal.data.table import embedded, folder_of, table_records
from daal.data.tars import Map, tar_records
from daal.errors import DataError, first_line

CROP_QUALITY = 95  # of the JPEG that a cut-out box becomes


def load_set(settings: DatasetConfig, each: Map = map) -> pa.Table:
    """All images of a set (RECORDS): train, query, gallery, each sorted by path.

    People, cameras and tracklets of joined sets are numbered on, so that none is in two sets; and
    their paths begin with the number of their set. `each` is `map`, or does the same on several
    cores.

    Raises:
        DataError: the set isn't what its layout says, with the reason.
    """
    if settings.layout != "joined":
        return _load(settings, each)
    parts: list[pa.Table] = []
    for number, part in enumerate(_parts(settings.root)):
        records = _load(part, each)
        known = {
            name: _numbered_on(records[name], [before[name] for before in parts], least)
            for name, least in (("pid", 1), ("camid", 0), ("tracklet", 0))
        }
        paths = pc.binary_join_element_wise(f"{number + 1}/", records["path"], "")
        known |= {name: records[name] for name in ("split", "time", "offset", "size", *BOX)}
        parts.append(records_of(paths, part=number, file=files_of(records), **known))
    records = pa.concat_tables(parts)
    return records.take(pc.sort_indices(pc.index_in(records["split"], pa.array(SPLITS))))


def _load(settings: DatasetConfig, each: Map) -> pa.Table:
    if settings.layout == "webdataset":
        return tar_records(settings.root, each)
    if settings.layout == "table":
        return table_records(settings.root)
    assert settings.layout != "joined"  # `_parts` has refused it
    return load_records(settings.layout, settings.root)


def _numbered_on(
    numbers: pa.ChunkedArray, before: list[pa.ChunkedArray], least: int
) -> pa.ChunkedArray:
    """Numbers from `least` on become larger than all before; others mean nobody and stay."""
    first = max((1 + pc.max(some).as_py() for some in before), default=0)
    is_one = pc.greater_equal(numbers, least)
    return pc.if_else(is_one, pc.add(numbers, pa.scalar(max(first, 0), pa.int32())), numbers)


def roots_of(settings: DatasetConfig) -> list[str]:
    """The folder that each part's files are under: a URI or an absolute path."""
    folders = [
        folder_of(part.root)[0]
        if part.layout == "table" or part.root.partition("?")[0].endswith(".tar")
        else part.root
        for part in (_parts(settings.root) if settings.layout == "joined" else [settings])
    ]
    return [folder if is_bucket(folder) else os.path.abspath(folder) for folder in folders]


def _parts(file: str) -> list[DatasetConfig]:
    """The sets that a YAML file lists, a layout and a root each; roots are from its folder."""
    folder, name = folder_of(file)
    place = Place(folder, "The folder of the list of sets")
    try:
        parts = [DatasetConfig.model_validate(part) for part in yaml.safe_load(place.read(name))]
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise DataError(
            f"{file} can't be read as a list of sets ({first_line(error)}); write a line like "
            "- {layout: folder, root: DIR} for each."
        ) from None
    if not parts or any(part.layout == "joined" or not part.root for part in parts):
        raise DataError(
            f"{file} must list one set or more, each with a root and a layout other than joined; "
            "write a line like - {layout: folder, root: DIR} for each."
        )
    return [part.model_copy(update={"root": _located_from(folder, part.root)}) for part in parts]


def _located_from(folder: str, root: str) -> str:
    root = os.path.expanduser(root)
    return root if is_bucket(root) or os.path.isabs(root) else joined(folder, root)


def files_of(records: pa.Table) -> pa.ChunkedArray:
    """The file that each image is in: from its set's root, or a URI."""
    return pc.coalesce(records["file"], records["path"])


def listing(roots: Sequence[str], records: pa.Table) -> pa.Table:
    """The records with the `size` of whole files too, and `mtime`, the time of change of the file
    in nanoseconds; both are -1 where it is gone."""
    files = files_of(records)
    states_N2 = np.full((len(records), 2), -1, np.int64)
    parts_N = records["part"].to_numpy()
    for part, root in enumerate(roots):
        rows = np.flatnonzero(parts_N == part)
        some = files.take(pa.array(rows)).combine_chunks().dictionary_encode()
        states_N2[rows] = _states(root, some.dictionary)[some.indices.to_numpy()]
    sizes = pc.if_else(pc.less(records["offset"], 0), pa.array(states_N2[:, 0]), records["size"])
    at = records.schema.get_field_index("size")
    records = records.set_column(at, records.schema.field("size"), sizes)
    return records.append_column("mtime", pa.array(states_N2[:, 1])).combine_chunks()


def _states(root: str, files: pa.Array) -> NDArray[np.int64]:
    """Size and time of change of each file (N, 2)."""
    is_uri = pc.match_substring_regex(files, f"^({'|'.join(SCHEMES)})://").to_numpy(False)
    if not is_uri.any():
        return opened(root).states(files)
    states_N2 = np.empty((len(files), 2), np.int64)
    places: dict[str, list[tuple[int, str]]] = {}
    for row, file in enumerate(files.to_pylist()):
        folder, name = _located(root, file)
        places.setdefault(folder, []).append((row, name))
    for folder, some in places.items():
        rows, names = zip(*some, strict=True)
        states_N2[list(rows)] = opened(folder).states(pa.array(names))
    return states_N2


class Where(NamedTuple):
    """Where an image's bytes are; as in RECORDS."""

    part: int
    file: str
    offset: int = -1
    size: int = -1
    box: tuple[int, int, int, int] | None = None


def wheres(records: pa.Table) -> list[Where]:
    """Where each image's bytes are."""
    names = ("part", "offset", "size", *BOX)
    parts, offsets, sizes, *sides = (records[name].to_pylist() for name in names)
    boxes = (None if box[0] is None else box for box in zip(*sides, strict=True))
    files = files_of(records).to_pylist()
    return list(map(Where, parts, files, offsets, sizes, boxes))


def read_image(roots: Sequence[str], where: Where) -> tuple[bytes, str | None]:
    """(bytes of the whole image or of its box, None), or (b"", why it can't be used)."""
    root, name = _located(roots[where.part], where.file)
    place = opened(root)
    if place.is_local and where.offset < 0 and where.box is None:
        return images.read(place.path(name))
    try:
        if where.box is None:
            return images.checked(_bytes(place, name, where.offset, where.size))
        return _cropped(_frame(root, name, where.offset, where.size), where.box), None
    except DataError as error:
        return b"", str(error)
    except (OSError, pa.ArrowException) as error:
        return b"", f"{images.UNREAD} ({first_line(error)})"


def _located(root: str, file: str) -> tuple[str, str]:
    """The folder to open, and the file's name in it."""
    return folder_of(file) if is_bucket(file) else (root, file)


def _bytes(place: Place, name: str, offset: int, size: int) -> bytes:
    if offset < 0:
        with place.filesystem.open_input_file(place.path(name)) as file:
            return bytes(file.read(_allowed(file.size())))
    if size < 0:
        return _row(place.root, name, offset)
    data: bytes = _tar(place.root, name).read_at(_allowed(size), offset)
    if len(data) < size:
        raise DataError("the file is cut off")
    return data


def _allowed(size: int) -> int:
    if size > images.MAX_BYTES:
        raise DataError(images.too_many_bytes(size))
    return size


@lru_cache(maxsize=8)  # opened once for all of its members
def _tar(root: str, name: str) -> pa.NativeFile:
    place = opened(root)
    return place.filesystem.open_input_file(place.path(name))


def _row(root: str, name: str, row: int) -> bytes:
    firsts = _row_groups(root, name)
    group = next(at for at in reversed(range(len(firsts))) if firsts[at] <= row)
    return _group(root, name, group)[row - firsts[group]]


@lru_cache(maxsize=16)
def _row_groups(root: str, name: str) -> list[int]:
    """The first row of each row group of a Parquet file."""
    place = opened(root)
    with place.filesystem.open_input_file(place.path(name)) as file:
        metadata = pq.ParquetFile(file).metadata
    firsts = [0]
    for group in range(metadata.num_row_groups - 1):
        firsts.append(firsts[-1] + metadata.row_group(group).num_rows)
    return firsts


@lru_cache(maxsize=2)
def _group(root: str, name: str, group: int) -> list[bytes]:
    return embedded(opened(root), name, group)


@lru_cache(maxsize=2)  # the boxes of one frame are read one after the other
def _frame(root: str, name: str, offset: int, size: int) -> Image.Image:
    return images.opened(_bytes(opened(root), name, offset, size))


def _cropped(frame: Image.Image, box: tuple[int, int, int, int]) -> bytes:
    x, y, width, height = box
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, frame.width), min(y + height, frame.height)
    if right <= left or bottom <= top:
        raise DataError(
            f"the box {x},{y},{width},{height} lies outside of the image, which has "
            f"{frame.width} x {frame.height} pixels"
        )
    data = io.BytesIO()
    frame.crop((left, top, right, bottom)).save(data, "JPEG", quality=CROP_QUALITY, subsampling=0)
    return data.getvalue()
