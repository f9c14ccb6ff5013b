"""Data set folders to records: Market-1501, DukeMTMC-reID, VeRi-776, MSMT17 and plain folders.

Only names and list files are read here, never an image. Nothing is downloaded.

| layout | train, query, gallery | file names |
|---|---|---|
| `market1501` | `bounding_box_train`, `query`, `bounding_box_test` | `0002_c1s1_000451_03.jpg` |
| `dukemtmc` | the same | `0001_c2_f0046182.jpg` |
| `veri` | `image_train`, `image_query`, `image_test` | `0002_c002_00030600_0.jpg` |
| `msmt17` | `train`, `test` (V2: `mask_train_v2`, `mask_test_v2`) and `list_*.txt` | see below |
| `folder` | `train`, `query`, `gallery`; or train images right in the root | `pid_camid_*.jpg` |

Query and gallery may both be missing: such a set can be trained on and not evaluated.

DukeMTMC-reID was withdrawn by its authors in 2019. It is only ever read from a path that the
user gives; whether they may use it is theirs to know.

MSMT17's pids are one more than in its lists, because they start from 0 there and 0 means
distractor here. Its train and val lists are merged, as is usual. As in its lists, a pid
of train and the same pid of query and gallery are different people.

In plain folders camid may be written `c3` or `3`, Market's names are understood too, and an
unknown pid is written `-` (`-_3_000017.jpg`).
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from daal.data.places import SUFFIXES, Place, checked_root, is_image, is_inside
from daal.data.records import SPLITS, UNKNOWN_PID, Domain, Split, of_split, records_of
from daal.errors import DataError

FolderLayout = Literal["market1501", "dukemtmc", "veri", "msmt17", "folder"]

BOX_FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
FOLDERS: dict[FolderLayout, tuple[str, str, str]] = {  # of train, query and gallery
    "market1501": BOX_FOLDERS,
    "dukemtmc": BOX_FOLDERS,
    "veri": ("image_train", "image_query", "image_test"),
    "folder": ("train", "query", "gallery"),
}

# Nine digits at most: pid and camid are int32 in the tables.
NAMES: dict[FolderLayout, tuple[re.Pattern[str], str]] = {
    "market1501": (
        re.compile(r"(?P<pid>-1|\d{1,9})_c(?P<camid>\d{1,9})s\d+_\d+_\d+\..*"),
        "0002_c1s1_000451_03.jpg",
    ),
    "dukemtmc": (
        re.compile(r"(?P<pid>-1|\d{1,9})_c(?P<camid>\d{1,9})_f\d+\..*"),
        "0001_c2_f0046182.jpg",
    ),
    "veri": (
        re.compile(r"(?P<pid>\d{1,9})_c(?P<camid>\d{1,9})_\d+_\d+\..*"),
        "0002_c002_00030600_0.jpg",
    ),
    "msmt17": (
        re.compile(r"\d+_\d+_(?P<camid>\d{1,9})_.*"),
        "0000_000_01_0303morning_0008_0.jpg",
    ),
    "folder": (
        re.compile(r"(?P<pid>-1|-|\d{1,9})_c?(?P<camid>\d{1,9})(?:s\d+)?[_.].*"),
        "0007_3_000451.jpg (pid_camid_anything, or -_3_000451.jpg where the pid is unknown)",
    ),
}

# Control characters, turned writing directions and bytes that aren't UTF-8: such names would garble
# lines and lists, and a table of strings can't hold the last. Spaces of all scripts, joiners and
# emoji are names like others.
REFUSED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

MSMT17_VERSIONS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
MSMT17_LISTS: dict[Split, tuple[str, ...]] = {
    "train": ("list_train.txt", "list_val.txt"),
    "query": ("list_query.txt",),
    "gallery": ("list_gallery.txt",),
}


def load_records(layout: FolderLayout, root: str | Path) -> pa.Table:
    """All images of a data set (RECORDS): train, query, gallery, each sorted by path.

    Junk boxes (-1) and distractors (0) are kept. Files without an image's suffix and hidden files
    are passed over (`daal.data.layout_checks` tells which). Raises DataError when a folder or list
    is missing or empty, when a name doesn't parse, when what has an image's name is no file, when a
    list names a file that isn't there or one twice, and when a link leads out of `root`, which may
    be a link itself.
    """
    place = Place(root)
    return in_order(place, _msmt17(place) if layout == "msmt17" else _named(layout, place))


def in_order(place: Place, records: pa.Table) -> pa.Table:
    """Train, query, gallery, each sorted by path; DataError if one that is scored has no pid."""
    for split in SPLITS[1:]:
        if UNKNOWN_PID in pc.unique(of_split(records, split)["pid"]).to_pylist():
            raise DataError(
                f"{place} has {split} images of unknown pid, which can't be scored; "
                "name them or leave query and gallery out."
            )
    by = {"split": pc.index_in(records["split"], pa.array(SPLITS)), "path": records["path"]}
    order = pc.sort_indices(pa.table(by), [(name, "ascending") for name in by])
    return records.take(order).combine_chunks()


def any_images(root: str | Path, what: str = "The folder") -> pa.Table:
    """Every image under a folder, whatever its name: sorted by path, of unknown pid, camid 0.

    Hidden files and folders are passed over, and links that lead out of `root`. Raises DataError
    if `root` isn't a folder, or has no images.
    """
    root = checked_root(root, what)
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or not is_image(name):
                continue
            if path.is_file() and is_inside(root, path):
                found.append(path.relative_to(root).as_posix())
    if not found:
        raise DataError(
            f"There are no images in {root} ({', '.join(sorted(SUFFIXES))}); give another folder."
        )
    return records_of(sorted(found), camid=0, split="gallery")


def check_characters(root: Place | Path, names: list[str], prefix: str = "") -> None:
    """Raise DataError if names hold characters that tables and reports can't."""
    if REFUSED.search("/".join(names)):
        refused = [prefix + name for name in names if REFUSED.search(name)]
        characters = sorted({each for name in refused for each in REFUSED.findall(name)})
        raise DataError(
            f"In {root}, {_some(refused)} can't be used for a character in the name "
            f"({', '.join(ascii(each)[1:-1] for each in characters[:3])}); rename them."
        )


def records_to_read(
    records: pa.Table, domain: Domain, max_train: int | None, seed: int
) -> pa.Table:
    """The records whose images a run reads: of the source only train, of the target all.

    At most `max_train` training images, a seeded random choice; query and gallery stay whole.
    """
    if domain == "source":
        records = of_split(records, "train")
    is_read = pc.not_equal(records["split"], "train").to_numpy()
    train = np.flatnonzero(~is_read)
    if max_train is None or len(train) <= max_train:
        return records
    is_read[np.random.default_rng([seed, 1]).choice(train, max_train, replace=False)] = True
    return records.filter(pa.array(is_read))


def _named(layout: FolderLayout, place: Place) -> pa.Table:
    """Records of the layouts whose file names say everything."""
    folders = dict(zip(SPLITS, FOLDERS[layout], strict=True))
    if layout == "folder" and not any(map(place.has_folder, folders.values())):
        folders = {"train": "."}
    pattern, example = NAMES[layout]
    tables: list[pa.Table] = []
    unparsed: list[str] = []
    for split in _splits(place, {split: [name] for split, name in folders.items()}):
        folder = folders[split]
        names = place.images(folder)
        if not names:
            raise DataError(
                f"{place / folder} holds no images; unpack the data set there, without folders "
                "inside, or correct the root."
            )
        prefix = "" if folder == "." else f"{folder}/"
        check_characters(place, names, prefix)
        paths = pa.array(names)
        found = pc.extract_regex(paths, f"^(?:{pattern.pattern})$")
        unparsed += [prefix + name for name in paths.filter(found.is_null()).to_pylist()]
        if not unparsed:
            pids, camids = found.field("pid"), found.field("camid")
            pids = pc.if_else(pc.equal(pids, "-"), str(UNKNOWN_PID), pids)
            paths = pc.binary_join_element_wise(prefix, paths, "")
            known = {"pid": pids.cast(pa.int32()), "camid": camids.cast(pa.int32())}
            tables.append(records_of(paths, split=split, **known))
    if unparsed:
        raise DataError(_unparsed(place, layout, unparsed, example))
    return pa.concat_tables(tables)


def _msmt17(place: Place) -> pa.Table:
    """Records of MSMT17's list files, of either version."""
    versions = [v for v in MSMT17_VERSIONS if place.has_folder(v[0])]
    if len(versions) != 1:
        found = "has both versions' folders" if versions else "has neither train nor mask_train_v2"
        raise DataError(
            f"{place} {found}; give MSMT17's root, which is the folder with train and test (V1) or "
            "mask_train_v2 and mask_test_v2 (V2), of one version only."
        )
    train, test = versions[0]
    pattern, example = NAMES["msmt17"]
    present: dict[str, set[str]] = {}  # Files by folder, so that each folder is read once.
    rows: list[tuple[str, int, int, Split]] = []
    missing: list[str] = []
    unparsed: list[str] = []
    listed: set[str] = set()
    for split in _splits(place, {s: list(names) for s, names in MSMT17_LISTS.items()}):
        start = len(rows)
        top = train if split == "train" else test
        for list_name in MSMT17_LISTS[split]:
            place.refuse_outside(list_name)
            for name, pid in _lines(place, list_name):
                folder, _, file = name.rpartition("/")
                if f"{split} {name}" in listed:
                    raise DataError(
                        f"{place / list_name} names {name!a} a second time; unpack MSMT17's "
                        "lists again."
                    )
                listed.add(f"{split} {name}")
                inside = f"{top}/{folder}"
                if inside not in present:
                    present[inside] = _present(place, inside)
                match = pattern.fullmatch(file)
                if file not in present[inside]:
                    missing.append(f"{top}/{name}")
                elif match is None:
                    unparsed.append(f"{top}/{name}")
                else:
                    rows.append((f"{top}/{name}", pid + 1, int(match["camid"]), split))
        if len(rows) == start and not missing and not unparsed:
            lists = " and ".join(MSMT17_LISTS[split])
            raise DataError(f"{lists} in {place} list no images; unpack MSMT17's lists again.")
    check_characters(place, [path for path, *_ in rows])
    if missing:
        raise DataError(
            f"MSMT17's lists in {place} name {_some(missing)}, which aren't there; unpack the "
            "images again, or use the lists of the same version."
        )
    if unparsed:
        raise DataError(_unparsed(place, "msmt17", unparsed, example))
    paths, pids, camids, splits = zip(*rows, strict=True)
    return records_of(paths, pid=pids, camid=camids, split=splits)


def _splits(place: Place, needed: dict[Split, list[str]]) -> list[Split]:
    """The splits whose folders or lists are there; DataError unless they make a data set."""
    there = {split: [place.exists(n) for n in names] for split, names in needed.items()}
    for split, names in needed.items():
        absent = [n for n, found in zip(names, there[split], strict=True) if not found]
        other = {"query": "gallery", "gallery": "query"}.get(split)
        alone = other is not None and any(found for s in there if s == other for found in there[s])
        if absent and (split == "train" or alone):
            why = "every data set needs" if split == "train" else f"{other} needs beside it"
            raise DataError(
                f"{place / absent[0]} is missing, which {why}; correct the root or the layout."
            )
    return [split for split in needed if all(there[split])]


def _present(place: Place, folder: str) -> set[str]:
    # A list's line is not to be trusted with ".." or an absolute path.
    if ".." in folder.split("/") or not place.has_folder(folder):
        return set()
    return set(place.images(folder))


def _lines(place: Place, name: str) -> Iterator[tuple[str, int]]:
    """(image, pid) of each line of a list file of MSMT17."""
    try:
        text = place.read(name).decode()
    except (OSError, ValueError):
        raise DataError(
            f"{place / name} can't be read as text; unpack MSMT17's lists again."
        ) from None
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or not re.fullmatch(r"\d{1,9}", fields[1], re.ASCII):
            raise DataError(
                f"Line {number} of {place / name} isn't an image's path and a pid; unpack MSMT17's "
                "lists again."
            )
        yield fields[0], int(fields[1])


def _unparsed(place: Place, layout: str, names: list[str], example: str) -> str:
    return (
        f"In {place}, {_some(names)} can't be read as {layout} names; rename or remove them, "
        f"or choose another layout: a name looks like {example}."
    )


def _some(names: list[str]) -> str:
    first = ", ".join(ascii(name) for name in sorted(names)[:3])
    return f"{len(names):,} files ({first}{', ...' if len(names) > 3 else ''})"
