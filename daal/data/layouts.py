"""Data set folders to records: Market-1501, DukeMTMC-reID, MSMT17 and plain folders.

Only names and list files are read here, never an image. Nothing is downloaded.

| layout | train, query, gallery | file names |
|---|---|---|
| `market1501` | `bounding_box_train`, `query`, `bounding_box_test` | `0002_c1s1_000451_03.jpg` |
| `dukemtmc` | the same | `0001_c2_f0046182.jpg` |
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

import numpy as np

from daal.config import Layout
from daal.data.records import SPLITS, UNKNOWN_PID, Domain, ImageRecord, Split
from daal.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

BOX_FOLDERS: dict[Split, str] = {
    "train": "bounding_box_train",
    "query": "query",
    "gallery": "bounding_box_test",
}
PLAIN_FOLDERS: dict[Split, str] = {"train": "train", "query": "query", "gallery": "gallery"}

# Nine digits at most: pid and camid are int32 in the tables.
NAMES: dict[Layout, tuple[re.Pattern[str], str]] = {
    "market1501": (
        re.compile(r"(?P<pid>-1|\d{1,9})_c(?P<camid>\d{1,9})s\d+_\d+_\d+\..*"),
        "0002_c1s1_000451_03.jpg",
    ),
    "dukemtmc": (
        re.compile(r"(?P<pid>-1|\d{1,9})_c(?P<camid>\d{1,9})_f\d+\..*"),
        "0001_c2_f0046182.jpg",
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
URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

MSMT17_VERSIONS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
MSMT17_LISTS: dict[Split, tuple[str, ...]] = {
    "train": ("list_train.txt", "list_val.txt"),
    "query": ("list_query.txt",),
    "gallery": ("list_gallery.txt",),
}


def load_records(layout: Layout, root: str | Path) -> list[ImageRecord]:
    """All images of a data set: train, query, gallery, each sorted by path.

    Junk boxes (-1) and distractors (0) are kept. Files without an image's suffix and hidden files
    are passed over (`daal.data.layout_checks` tells which). Raises DataError when a folder or list
    is missing or empty, when a name doesn't parse, when what has an image's name is no file, when a
    list names a file that isn't there or one twice, and when a link leads out of `root`, which may
    be a link itself.
    """
    root = checked_root(root)
    records = _msmt17(root) if layout == "msmt17" else _named(layout, root)
    for split in SPLITS:
        known = [r for r in records if r.split == split]
        if split != "train" and any(r.pid == UNKNOWN_PID for r in known):
            raise DataError(
                f"{root} has {split} images of unknown pid, which can't be scored; "
                "name them or leave query and gallery out."
            )
    order = {split: number for number, split in enumerate(SPLITS)}
    return sorted(records, key=lambda r: (order[r.split], r.path))


def any_images(root: str | Path, what: str = "The folder") -> list[ImageRecord]:
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
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            if path.is_file() and is_inside(root, path):
                found.append(path.relative_to(root).as_posix())
    if not found:
        raise DataError(
            f"There are no images in {root} ({', '.join(sorted(SUFFIXES))}); give another folder."
        )
    return [ImageRecord(path, UNKNOWN_PID, 0, "gallery") for path in sorted(found)]


def checked_root(root: str | Path, what: str = "The data set's root") -> Path:
    """The folder; DataError if it is none. A URI is said to be one, as it was given."""
    text = os.fspath(root)
    if os.path.isdir(text):  # of Path, it fails where the name is too long for the disk
        return Path(text)
    if URI.match(text):
        given = text if "://" in text else text.replace(":/", "://", 1)  # of a Path
        raise DataError(
            f"{given} is a URI, and images are read from folders only; copy them to a "
            "folder here, and give its path."
        )
    shown = text if text == text.strip() else f"{text!a} (a space begins or ends it)"
    raise DataError(f"{what} {shown} isn't a folder; give the folder of the unpacked images.")


def check_characters(root: Path, names: list[str]) -> None:
    """Raise DataError if names hold characters that tables and reports can't."""
    if refused := [name for name in names if REFUSED.search(name)]:
        characters = sorted({each for name in refused for each in REFUSED.findall(name)})
        raise DataError(
            f"In {root}, {_some(refused)} can't be used for a character in the name "
            f"({', '.join(ascii(each)[1:-1] for each in characters[:3])}); rename them."
        )


def is_inside(root: Path, path: Path) -> bool:
    """Whether a path stays under `root`, links followed."""
    real_root = os.path.realpath(root)
    try:
        return os.path.commonpath([real_root, os.path.realpath(path)]) == real_root
    except ValueError:  # it has a zero byte
        return False


def records_to_read(
    records: list[ImageRecord], domain: Domain, max_train: int | None, seed: int
) -> list[ImageRecord]:
    """The records whose images a run reads: of the source only train, of the target all.

    At most `max_train` training images, a seeded random choice; query and gallery stay whole.
    """
    if domain == "source":
        records = [record for record in records if record.split == "train"]
    train = [at for at, record in enumerate(records) if record.split == "train"]
    if max_train is None or len(train) <= max_train:
        return records
    kept = set(np.random.default_rng([seed, 1]).choice(train, max_train, replace=False).tolist())
    return [r for at, r in enumerate(records) if r.split != "train" or at in kept]


def _named(layout: Layout, root: Path) -> list[ImageRecord]:
    """Records of the layouts whose file names say everything."""
    folders = PLAIN_FOLDERS if layout == "folder" else BOX_FOLDERS
    if layout == "folder" and not any((root / name).is_dir() for name in folders.values()):
        folders = {"train": "."}
    pattern, example = NAMES[layout]
    records: list[ImageRecord] = []
    unparsed: list[str] = []
    for split in _splits(root, {split: [name] for split, name in folders.items()}):
        folder = folders[split]
        names = list(_files(root, folder))
        if not names:
            raise DataError(
                f"{root / folder} holds no images; unpack the data set there, without folders "
                "inside, or correct the root."
            )
        prefix = "" if folder == "." else f"{folder}/"
        check_characters(root, [prefix + name for name in names])
        for name in names:
            match = pattern.fullmatch(name)
            if match is None:
                unparsed.append(prefix + name)
                continue
            pid = UNKNOWN_PID if match["pid"] == "-" else int(match["pid"])
            records.append(ImageRecord(prefix + name, pid, int(match["camid"]), split))
    if unparsed:
        raise DataError(_unparsed(root, layout, unparsed, example))
    return records


def _msmt17(root: Path) -> list[ImageRecord]:
    """Records of MSMT17's list files, of either version."""
    versions = [v for v in MSMT17_VERSIONS if (root / v[0]).is_dir()]
    if len(versions) != 1:
        found = "has both versions' folders" if versions else "has neither train nor mask_train_v2"
        raise DataError(
            f"{root} {found}; give MSMT17's root, which is the folder with train and test (V1) or "
            "mask_train_v2 and mask_test_v2 (V2), of one version only."
        )
    train, test = versions[0]
    pattern, example = NAMES["msmt17"]
    present: dict[str, set[str]] = {}  # Files by folder, so that each folder is read once.
    records: list[ImageRecord] = []
    missing: list[str] = []
    unparsed: list[str] = []
    listed: set[str] = set()
    for split in _splits(root, {s: list(names) for s, names in MSMT17_LISTS.items()}):
        start = len(records)
        top = train if split == "train" else test
        for list_name in MSMT17_LISTS[split]:
            _refuse_outside(root, root / list_name)
            for name, pid in _lines(root / list_name):
                folder, _, file = name.rpartition("/")
                if f"{split} {name}" in listed:
                    raise DataError(
                        f"{root / list_name} names {name!a} a second time; unpack MSMT17's "
                        "lists again."
                    )
                listed.add(f"{split} {name}")
                inside = f"{top}/{folder}"
                if inside not in present:
                    present[inside] = _present(root, inside)
                match = pattern.fullmatch(file)
                if file not in present[inside]:
                    missing.append(f"{top}/{name}")
                elif match is None:
                    unparsed.append(f"{top}/{name}")
                else:
                    record = ImageRecord(f"{top}/{name}", pid + 1, int(match["camid"]), split)
                    records.append(record)
        if len(records) == start and not missing and not unparsed:
            lists = " and ".join(MSMT17_LISTS[split])
            raise DataError(f"{lists} in {root} list no images; unpack MSMT17's lists again.")
    check_characters(root, [record.path for record in records])
    if missing:
        raise DataError(
            f"MSMT17's lists in {root} name {_some(missing)}, which aren't there; unpack the "
            "images again, or use the lists of the same version."
        )
    if unparsed:
        raise DataError(_unparsed(root, "msmt17", unparsed, example))
    return records


def _splits(root: Path, needed: dict[Split, list[str]]) -> list[Split]:
    """The splits whose folders or lists are there; DataError unless they make a data set."""
    there = {split: [(root / n).exists() for n in names] for split, names in needed.items()}
    for split, names in needed.items():
        absent = [n for n, found in zip(names, there[split], strict=True) if not found]
        other = {"query": "gallery", "gallery": "query"}.get(split)
        alone = other is not None and any(found for s in there if s == other for found in there[s])
        if absent and (split == "train" or alone):
            why = "every data set needs" if split == "train" else f"{other} needs beside it"
            raise DataError(
                f"{root / absent[0]} is missing, which {why}; correct the root or the layout."
            )
    return [split for split in needed if all(there[split])]


def _files(root: Path, folder: str) -> Iterator[str]:
    """Names of the images in `root/folder`; DataError for links that lead out of the root."""
    _refuse_outside(root, root / folder)
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                name = entry.name
                # Hidden names include macOS's "._0002_c1...jpg", which are no images.
                if name.startswith(".") or os.path.splitext(name)[1].lower() not in SUFFIXES:
                    continue
                if entry.is_symlink():
                    _refuse_outside(root, Path(entry.path))
                    if not os.path.exists(entry.path):
                        raise DataError(
                            f"{root / folder} has a broken link, {name!a}; copy the file in "
                            "instead."
                        )
                if not entry.is_file():  # reading a pipe would wait for ever
                    raise DataError(
                        f"{root / folder} has {name!a}, which is no file though it has an "
                        "image's name; remove or rename it."
                    )
                yield name
    except OSError as error:
        raise DataError(
            f"{root / folder} can't be read ({error.strerror}); check that it is a folder and "
            "its permissions."
        ) from None


def _refuse_outside(root: Path, path: Path) -> None:
    if not is_inside(root, path):
        raise DataError(
            f"{path} is a link that leads out of the data set's root; copy the files in instead "
            "(cp -rL makes a copy with files in place of links)."
        )


def _present(root: Path, folder: str) -> set[str]:
    # A list's line is not to be trusted with ".." or an absolute path.
    if ".." in folder.split("/") or not (root / folder).is_dir():
        return set()
    return set(_files(root, folder))


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    """(image, pid) of each line of a list file of MSMT17."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise DataError(f"{path} can't be read as text; unpack MSMT17's lists again.") from None
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or not re.fullmatch(r"\d{1,9}", fields[1], re.ASCII):
            raise DataError(
                f"Line {number} of {path} isn't an image's path and a pid; unpack MSMT17's "
                "lists again."
            )
        yield fields[0], int(fields[1])


def _unparsed(root: Path, layout: Layout, names: list[str], example: str) -> str:
    return (
        f"In {root}, {_some(names)} can't be read as {layout} names; rename or remove them, "
        f"or choose another layout: a name looks like {example}."
    )


def _some(names: list[str]) -> str:
    first = ", ".join(ascii(name) for name in sorted(names)[:3])
    return f"{len(names):,} files ({first}{', ...' if len(names) > 3 else ''})"
