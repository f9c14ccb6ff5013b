"""What deserves a look in a data set's folder, before a run trusts it: sentences of warning.

Only names are looked at, never an image. Numbers in names mean what their user says they mean, and
a number that means something else (a date, a frame) parses as well: so it is judged by what real
people and cameras look like.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from daal.config import Layout
from daal.data.places import is_image
from daal.data.records import (
    DISTRACTOR_PID,
    JUNK_PID,
    SPLITS,
    UNKNOWN_CAMID,
    counted,
    distinct,
    of_split,
)
from daal.errors import DataError

# What file managers leave; Market-1501 was published with some.
LITTER = frozenset({"thumbs.db", "desktop.ini"})

# As published: (train images, train pids, query images, gallery images, junk boxes).
PUBLISHED: dict[Layout, tuple[int, int, int, int, int]] = {
    "market1501": (12_936, 751, 3_368, 15_913, 3_819),
    "dukemtmc": (16_522, 702, 2_228, 17_661, 0),
    "msmt17": (32_621, 1_041, 11_659, 82_161, 0),
}
# Folders of published sets that hold images and belong to no split.
ASIDE: dict[Layout, frozenset[str]] = {"market1501": frozenset({"gt_bbox", "gt_query"})}

MIN_IMAGES = 20  # of training; of fewer, numbers say too little about what they mean
DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")


def passed_over(root: str | Path, records: pa.Table) -> list[str]:
    """Files and folders beside the records' images that are no records: sorted, from `root`.

    Without hidden ones, and without what file managers leave.
    """
    root = Path(root)
    known = set(records["path"].to_pylist())
    folders = {path.rpartition("/")[0] for path in known}
    found = []
    for folder in folders:
        prefix = f"{folder}/" if folder else ""
        for name in os.listdir(root / folder):
            path = prefix + name
            if path in known or path in folders or name.startswith("."):
                continue
            if name.lower() not in LITTER:
                found.append(path)
    return sorted(found)


def unread_folders(layout: Layout, root: str | Path, records: pa.Table) -> list[str]:
    """Top folders of `root` (and "." for itself) that hold images and that no record is of.

    Sorted. Images lie right in them, or in folders of theirs.
    """
    top = pc.replace_substring_regex(records["path"], "/.*", "")
    read = set(pc.unique(top).to_pylist())
    if pc.any(pc.equal(top, records["path"])).as_py():
        return []  # the root itself is read; `passed_over` tells of what lies beside
    found = ["."] if _has_images(Path(root), depth=0) else []
    for name in sorted(os.listdir(root)):
        aside = name.startswith(".") or name in read | ASIDE.get(layout, frozenset())
        if not aside and _has_images(Path(root, name), depth=1):
            found.append(name)
    return found


def check_names(records: pa.Table) -> list[str]:
    """Warnings where pids and camids of the training images look like other numbers."""
    train = of_split(records, "train")
    num_zero = counted(train["pid"])[DISTRACTOR_PID]
    zero = [
        f"{num_zero:,} training images have pid 0, which is nobody in particular and left out of "
        "figures; rename them if it is a person: people are numbered from 1."
    ]
    warnings = zero if num_zero else []
    if len(train) < MIN_IMAGES:
        return warnings
    doubts = [doubt for doubt in (_odd_pids(train), _odd_camids(train)) if doubt]
    some = train.slice(0, 1).to_pylist()[0]
    person = f"person {some['pid']}" if some["pid"] >= 0 else "an unknown person"
    return warnings + [
        f"{doubt} (e.g. {some['path']!a} is read as {person}, camera {some['camid']}); rename the "
        "images, pid and camid first, unless it is so."
        for doubt in doubts
    ]


def check_identities(layout: Layout, root: str | Path, records: pa.Table) -> list[str]:
    """Warnings about queries without a match, and about people of both training and test.

    Raises DataError if no query could be scored.
    """
    queries, gallery = of_split(records, "query"), of_split(records, "gallery")
    if not len(queries):
        return []
    camids: dict[int, set[int]] = {}
    for pid, camid in _people_by_cameras(gallery):
        camids.setdefault(pid, set()).add(camid)
    cameras = distinct(queries["camid"]) | distinct(gallery["camid"])
    # Of a query whose camera isn't known, every image of its person counts.
    alone = [
        query
        for query in queries.select(["path", "pid", "camid"]).to_pylist()
        if not camids.get(query["pid"], set()) - ({query["camid"]} - {UNKNOWN_CAMID})
    ]
    if len(alone) == len(queries):
        raise DataError(
            f"No query in {root} has an image of the same pid and another camera in the gallery, "
            "so nothing could be scored; correct the names, or leave query and gallery out."
            if len(cameras) > 1 or UNKNOWN_CAMID in cameras
            else f"All query and gallery images in {root} are by camera {cameras.pop()}, and an "
            "image of the query's own camera counts for no score; leave query and gallery out, or "
            "give the query images another camera's number than the gallery's."
        )
    warnings = []
    if alone:
        warnings.append(
            f"{len(alone):,} of {len(queries):,} queries have no match from another camera in "
            f"the gallery (e.g. {alone[0]['path']!a}), and scores leave them out; correct their "
            "names if they should have one."
        )
    nobody = pc.sum(pc.less_equal(queries["pid"], 0)).as_py()
    if nobody or len(queries) > len(gallery):
        odd = (
            f"{nobody:,} query images have pid 0 or -1, which mean nobody in particular"
            if nobody
            else f"there are more query images ({len(queries):,}) than gallery images "
            f"({len(gallery):,})"
        )
        warnings.append(
            f"{odd}; check that query and gallery aren't exchanged, and "
            "that people are numbered from 1."
        )
    if layout != "msmt17":  # its lists number the people of training and test apart
        tested = distinct(queries["pid"])
        known = distinct(of_split(records, "train")["pid"])
        if both := sorted(pid for pid in known & tested if pid > 0):
            warnings.append(
                f"{len(both):,} of {len(tested):,} people in query are also in train (e.g. pid "
                f"{both[0]}), so scores are of people seen in training; give them other pids if "
                "they are others, or take them out of train."
            )
    return warnings


def check_counts(layout: Layout, records: pa.Table) -> list[str]:
    """A warning sentence where some of the records differ from the published data set.

    Empty when all agree, and for plain folders. A set of which no number is the published one is
    taken for another set with the same names. One without query and gallery is only compared in
    train.
    """
    if layout not in PUBLISHED:
        return []
    train, query, gallery = (of_split(records, split) for split in SPLITS)
    num_junk = counted(gallery["pid"])[JUNK_PID]
    found = {
        "training images": len(train),
        "training pids": len(distinct(train["pid"])),
        "query images": len(query),
        "gallery images without junk": len(gallery) - num_junk,
        "junk boxes": num_junk,
    }
    compared = [
        (what, num_found, num_published)
        for (what, num_found), num_published in zip(found.items(), PUBLISHED[layout], strict=True)
        if num_published and (len(gallery) or what.startswith("training"))
    ]
    differences = [
        f"{num_found:,} {what} where {num_published:,} were published"
        for what, num_found, num_published in compared
        if num_found != num_published
    ]
    if len(differences) in (0, len(compared)):
        return []
    return [
        f"This isn't {layout} as published, so figures measured on it can't be set beside "
        f"published ones: {', '.join(differences)}."
    ]


def _odd_pids(train: pa.Table) -> str | None:
    pids = counted(train.filter(pc.greater_equal(train["pid"], 0))["pid"])
    num_cameras = len(distinct(train["camid"]) - {UNKNOWN_CAMID})
    if 2 * sum(n for pid, n in pids.items() if DATE.fullmatch(str(pid))) > len(train):
        return "the pids of most training images look like dates"
    if pids.total() < len(train):  # some are unknown: then the others were given with care
        return None
    if len(pids) == 1:
        return f"all {len(train):,} training images are of one person (an unknown one is written -)"
    if len(pids) < num_cameras <= len(train) / 4:  # of more, `_odd_camids` tells
        return (
            f"training images are of {len(pids):,} people by {num_cameras:,} cameras, as if the "
            "two numbers were exchanged"
        )
    return None


def _odd_camids(train: pa.Table) -> str | None:
    cameras = counted(train["camid"])
    del cameras[UNKNOWN_CAMID]
    if not cameras:
        return None
    if 4 * len(cameras) > len(train):
        return f"there are {len(cameras):,} cameras for {len(train):,} training images"
    single = sum(count == 1 for count in cameras.values())
    if 2 * single > len(cameras):
        return f"{single:,} of {len(cameras):,} cameras have a single training image"
    pairs = _people_by_cameras(train)
    num_people = len({pid for pid, _ in pairs})
    num_known = pc.sum(pc.greater_equal(train["pid"], 0)).as_py()
    if num_known == len(pairs) >= 3 * max(num_people, 1):
        return "no person has two training images by one camera, as if cameras counted images"
    return None


def _people_by_cameras(records: pa.Table) -> set[tuple[int, int]]:
    """(pid, camid) of which there are images; of nobody without a pid."""
    pids, camids = (records[name].to_pylist() for name in ("pid", "camid"))
    return {(pid, camid) for pid, camid in zip(pids, camids, strict=True) if pid >= 0}


def _has_images(folder: Path, depth: int) -> bool:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if is_image(entry.name) and entry.is_file():
                return True
            if depth and entry.is_dir() and _has_images(Path(entry.path), depth - 1):
                return True
    return False
