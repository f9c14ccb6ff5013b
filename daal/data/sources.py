"""Image sets of any kind: which images there are, and the bytes of each.

A kind of set is one function from its root to records, and one line here.
"""

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from daal.config import DatasetConfig, Layout
from daal.data import images
from daal.data.layouts import FolderLayout, load_records
from daal.data.places import Place, is_bucket, joined, opened
from daal.data.records import SPLITS, ImageRecord, Where
from daal.data.table import embedded, folder_of, table_records
from daal.data.tars import tar_records
from daal.errors import DataError, first_line

Loader = Callable[[str], list[ImageRecord]]
LOADERS: dict[Layout, Loader] = {
    **{layout: partial(load_records, layout) for layout in get_args(FolderLayout)},
    "table": table_records,
    "webdataset": tar_records,
}

# What is known of an image before it is read; `file` is the image's own path in most sets.
LISTING = pa.schema({
    "path": pa.string(), "part": pa.int16(), "file": pa.string(), "offset": pa.int64(),
    "size": pa.int64(), "mtime": pa.int64(), "x": pa.int32(), "y": pa.int32(), "w": pa.int32(),
    "h": pa.int32(),
})  # fmt: skip
CROP_QUALITY = 95  # of the JPEG that a cut-out box becomes


def load_set(settings: DatasetConfig) -> list[ImageRecord]:
    """All images of a set: train, query, gallery, each sorted by path.

    People, cameras and tracklets of joined sets are numbered on, so that none is in two sets; and
    their paths begin with the number of their set.

    Raises:
        DataError: the set isn't what its layout says, with the reason.
    """
    if settings.layout != "joined":
        return LOADERS[settings.layout](settings.root)
    records: list[ImageRecord] = []
    for number, part in enumerate(_parts(settings.root)):
        pid, camid, tracklet = (
            1 + max((getattr(record, name) for record in records), default=-1)
            for name in ("pid", "camid", "tracklet")
        )
        records += [
            replace(
                record,
                path=f"{number + 1}/{record.path}",
                pid=record.pid + pid if record.pid > 0 else record.pid,
                camid=record.camid + camid if record.camid >= 0 else record.camid,
                tracklet=record.tracklet + tracklet if record.tracklet >= 0 else record.tracklet,
                where=record.where or Where(record.path),
                part=number,
            )
            for record in LOADERS[part.layout](part.root)
        ]
    return sorted(records, key=lambda record: SPLITS.index(record.split))


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
    return [
        part if is_bucket(part.root) or os.path.isabs(part.root)
        else part.model_copy(update={"root": joined(folder, part.root)})
        for part in parts
    ]  # fmt: skip


def listing(roots: Sequence[str], records: Sequence[ImageRecord]) -> pa.Table:
    """The records as LISTING. `size` is of a file or of its part that is read, -1 if that isn't
    known; `mtime` of the file; both are -1 where it is gone."""
    wheres = [record.where or Where(record.path) for record in records]
    files = list(dict.fromkeys(
        (record.part, where.file) for record, where in zip(records, wheres, strict=True)
    ))  # fmt: skip
    states: dict[tuple[int, str], tuple[int, int]] = {}
    groups: dict[str, list[tuple[tuple[int, str], str]]] = {}
    for part, file in files:
        root, name = _located(roots[part], file)
        groups.setdefault(root, []).append(((part, file), name))
    for root, some in groups.items():
        found = opened(root).states([name for _, name in some])
        states.update(zip((key for key, _ in some), found, strict=True))
    nowhere = (0, 0, -1, -1)
    boxes = [where.box or nowhere for where in wheres]
    of_files = [states[r.part, w.file] for r, w in zip(records, wheres, strict=True)]
    return pa.table(
        [
            [record.path for record in records],
            [record.part for record in records],
            [where.file for where in wheres],
            [where.offset for where in wheres],
            [
                size if w.offset < 0 else w.size
                for w, (size, _) in zip(wheres, of_files, strict=True)
            ],
            [mtime for _, mtime in of_files],
            *([box[side] for box in boxes] for side in range(4)),
        ],
        schema=LISTING,
    )


def read_image(roots: Sequence[str], record: ImageRecord) -> tuple[bytes, str | None]:
    """(bytes of the whole image or of its box, None), or (b"", why it can't be used)."""
    where = record.where or Where(record.path)
    root, name = _located(roots[record.part], where.file)
    place = opened(root)
    if place.is_local and where.offset < 0 and where.box is None:
        return images.read(Path(place.path(name)))
    try:
        if where.box is None:
            return images.checked(_bytes(place, name, where))
        return _cropped(_frame(root, name, where.offset, where.size), where.box), None
    except DataError as error:
        return b"", str(error)
    except (OSError, pa.ArrowException) as error:
        return b"", f"{images.UNREAD} ({first_line(error)})"


def _located(root: str, file: str) -> tuple[str, str]:
    """The folder to open, and the file's name in it."""
    return folder_of(file) if is_bucket(file) else (root, file)


def _bytes(place: Place, name: str, where: Where) -> bytes:
    if where.size < 0 and where.offset >= 0:
        return _row(place.root, name, where.offset)
    if where.offset >= 0:
        data: bytes = _tar(place.root, name).read_at(_allowed(where.size), where.offset)
        if len(data) < where.size:
            raise DataError("the file is cut off")
        return data
    with place.filesystem.open_input_file(place.path(name)) as file:
        return bytes(file.read(_allowed(file.size())))


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
    return images.opened(_bytes(opened(root), name, Where(name, offset, size)))


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
