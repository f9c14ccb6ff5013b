"""WebDataset tar files to records: members `KEY.jpg`, and `KEY.json` or `KEY.cls` beside it.

The JSON says what a table's columns would (`split`, `pid`, `camid`, `tracklet`, `time`); a `.cls`
file says the pid. Without a split, a tar whose name begins with query, gallery or test holds that
split, and any other holds train. Nothing is unpacked: members are read where they lie.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pyarrow as pa
from pyarrow import fs

from daal.data.places import Place, is_image, opened
from daal.data.records import Split
from daal.data.table import folder_of, records_of_columns
from daal.errors import DataError, first_line

Map = Callable[[Callable[[str], pa.Table], list[str]], Iterable[pa.Table]]
KNOWN = ("split", "pid", "camid", "tracklet", "time")
SPLIT_OF_NAME: dict[str, Split] = {"query": "query", "gallery": "gallery", "test": "gallery"}
READ_AHEAD = 256 * 1024  # bytes; headers of small members lie close together
MAX_LABEL = 64 * 1024  # bytes of a .json or .cls member


def tar_records(root: str, each: Map = map) -> pa.Table:
    """RECORDS of the images in a tar file, or in all tar files of a folder, sorted by name.

    Raises DataError when there is no tar file or no image, a tar is cut off, or a name is there
    twice.
    """
    if root.partition("?")[0].endswith(".tar"):
        folder, name = folder_of(root)
        place, tars = Place(folder, "The tar file's folder"), [name]
    else:
        place = Place(root)
        tars = _tars(place)
    try:
        found = pa.concat_tables(
            each(partial(_images, place.root), tars), promote_options="permissive"
        )
    except pa.ArrowException as error:
        raise _disagree(root, error) from None
    if not len(found):
        raise DataError(f"The tar files of {place} hold no images; give tars with .jpg members.")
    known = {name: found[name] for name in ("file", "offset", "size")}
    return records_of_columns(place, root, found["path"].combine_chunks(), found, known)


def _images(root: str, tar: str) -> pa.Table:
    """Name, offset and size of each image in a tar file, and what is said of it."""
    split = SPLIT_OF_NAME.get(tar.partition("-")[0].partition(".")[0], "train")
    images, known = _members(opened(root), tar)
    labels = [{"split": split} | known.get(_key(name), {}) for name in images]
    offsets, sizes = zip(*images.values(), strict=True) if images else ((), ())
    columns = {
        "path": pa.array(list(images), pa.string()),
        "file": pa.repeat(tar, len(images)),
        "offset": pa.array(offsets, pa.int64()),
        "size": pa.array(sizes, pa.int64()),
    }
    try:
        return pa.table(columns | {
            name: [label.get(name) for label in labels]
            for name in KNOWN if any(name in label for label in labels)
        })  # fmt: skip
    except pa.ArrowException as error:
        raise _disagree(opened(root) / tar, error) from None


def _disagree(where: str, error: pa.ArrowException) -> DataError:
    return DataError(
        f"the .json members of {where} don't agree in their types ({first_line(error)}); make "
        "each of pid, camid, tracklet and time numbers only, or text only."
    )


def _tars(place: Place) -> list[str]:
    found = place.filesystem.get_file_info(fs.FileSelector(place.base))
    tars = sorted(
        info.base_name for info in found
        if info.type == fs.FileType.File and info.base_name.endswith(".tar")
    )  # fmt: skip
    for tar in tars:
        place.refuse_outside(tar)
    if not tars:
        raise DataError(f"There is no .tar file in {place}; give the folder of the tar files.")
    return tars


def _members(
    place: Place, tar: str
) -> tuple[dict[str, tuple[int, int]], dict[str, dict[str, Any]]]:
    """Offset and size of each image by name, and what is said of each key."""
    images: dict[str, tuple[int, int]] = {}
    known: dict[str, dict[str, Any]] = {}
    try:
        with (
            place.filesystem.open_input_file(place.path(tar)) as file,
            io.BufferedReader(file, READ_AHEAD) as ahead,
            tarfile.open(fileobj=ahead, mode="r:") as members,
        ):
            for member in members:
                name, base = member.name, member.name.rpartition("/")[2]
                if not member.isfile() or base.startswith("."):
                    continue
                if is_image(name):
                    if name in images:
                        raise DataError(f"{place / tar} has {name!a} twice; rename one of them.")
                    images[name] = (member.offset_data, member.size)
                elif name.endswith((".json", ".cls")) and member.size <= MAX_LABEL:
                    ahead.seek(member.offset_data)
                    text = ahead.read(member.size).decode()
                    known.setdefault(_key(name), {}).update(_label(place / tar, name, text))
            if file.size() < members.offset:
                raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(
            f"{place / tar} can't be read as a tar file ({first_line(error)}); copy it again, "
            "uncompressed and whole."
        ) from None
    return images, known


def _label(tar: str, name: str, text: str) -> dict[str, Any]:
    if name.endswith(".cls"):
        return {"pid": int(text)}
    found = json.loads(text)
    if not isinstance(found, dict):
        raise DataError(f'{name!a} in {tar} is no JSON object; make it one, like {{"pid": 7}}.')
    return {key: found[key] for key in KNOWN if found.get(key) is not None}


def _key(name: str) -> str:
    return name.rpartition(".")[0]
