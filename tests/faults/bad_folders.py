"""Data sets' folders that aren't what their layout says."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from bad_input import PICTURE, VALIDATE, Case, case, market, write

MSMT17 = {
    "list_train.txt": [f"{pid:04}/{pid:04}_{n:03}_0{n}_0303morning_0008_0.jpg {pid}"
                       for pid in range(4) for n in (1, 2, 3)],
    "list_val.txt": ["0000/0000_009_04_0303noon_0009_1.jpg 0"],
    "list_query.txt": ["0003/0003_002_05_0303evening_0001_0.jpg 3"],
    "list_gallery.txt": ["0003/0003_003_06_0303evening_0001_0.jpg 3"],
}  # fmt: skip
QUERY_OF_MSMT17 = MSMT17["list_query.txt"][0]
BOX = "bounding_box_train/0005_c1s1_000005_00.jpg"
OUTSIDE = "outside/0005_c1s1_000005_00.jpg"


def msmt17(root: str) -> None:
    for name, lines in MSMT17.items():
        write(f"{root}/{name}", "\n".join(lines) + "\n")
        top = "train" if name in ("list_train.txt", "list_val.txt") else "test"
        for line in lines:
            write(f"{root}/{top}/{line.split()[0]}")


def plain(root: str) -> None:
    for pid in (1, 2, 3, 4):
        for camid in (1, 2, 3):
            write(f"{root}/train/{pid}_{camid}_a.jpg")
    write(f"{root}/query/7_1_a.jpg")
    write(f"{root}/gallery/7_2_a.jpg")


WORLDS = {"market1501": market, "dukemtmc": market, "msmt17": msmt17, "folder": plain}


# What spoils a target that is in order


def nothing() -> None:
    pass


def remove(name: str) -> None:
    path = Path("target", name)
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def add(name: str, data: bytes | str = PICTURE) -> None:
    write(f"target/{name}", data)


def fill(folder: str, *names: str) -> None:
    """These images in place of those that are there."""
    remove(folder)
    Path("target", folder).mkdir()
    for name in names:
        add(f"{folder}/{name}")


def replace_by_link(name: str, to: str) -> None:
    write(OUTSIDE)
    path = Path("target", name)
    path.unlink(missing_ok=True)
    path.symlink_to(to)


def append(name: str, line: str) -> None:
    with Path("target", name).open("a") as file:
        file.write(f"{line}\n")


def replace_by_market() -> None:
    shutil.rmtree("target")
    market("target")


def replace_by_file(folder: str) -> None:
    remove(folder)
    add(folder)


def have_one_camera() -> None:
    for folder in ("query", "bounding_box_test"):
        for file in list(Path("target", folder).iterdir()):
            pid = file.name.split("_")[0]
            file.rename(file.with_name(f"{pid}_c1s1_{folder[:1] == 'q':06}_00.jpg"))


def exchange() -> None:
    os.rename("target/query", "target/old")
    os.rename("target/bounding_box_test", "target/query")
    os.rename("target/old", "target/bounding_box_test")


def forget_pids() -> None:
    for number, file in enumerate(sorted(Path("target/train").iterdir())):
        file.rename(file.with_name(f"-_{number}_a.jpg"))


def add_other_splits() -> None:
    for name in ("val/8_1_a.jpg", "test/deep/8_1_a.jpg", "a.jpg", "notes/x.txt"):
        add(name)


DATES = [f"20240131_{153000 + n}_{n}.jpg" for n in range(24)]
NO_NORM = " cluster.camera_norm=true supervised_bound=false"
NO_SOURCE = """ "source.root=''" adapt.batch_source=0 cluster.source_weight=0.1"""

Row = tuple[str, str, str, Callable[[], object], int, *tuple[str, ...]]
SPOILED: list[Row] = [
    # layout, more settings, name, what spoils it, exit code, what must be said
    ("market1501", "", "no bounding_box_train", lambda: remove("bounding_box_train"), 3,
     "target/bounding_box_train is missing, which every data set needs"),
    ("market1501", "", "no query", lambda: remove("query"), 3,
     "target/query is missing, which gallery needs"),
    ("folder", "", "no gallery", lambda: remove("gallery"), 3, "target/gallery is missing"),
    ("msmt17", "", "no list_val.txt", lambda: remove("list_val.txt"), 3, "list_val.txt is missing"),
    ("market1501", "", "query empty", lambda: fill("query"), 3,
     "target/query holds no images; unpack"),
    ("market1501", "", "query a file", lambda: replace_by_file("query"), 3,
     "target/query can't be read (Not a directory)"),
    ("dukemtmc", "", "names of market1501", nothing, 3,
     "In target, 18 files", "can't be read as dukemtmc names"),
    ("msmt17", "", "folders of market1501", replace_by_market, 3,
     "target has neither train nor mask_train_v2"),
    ("market1501", "", "a name that isn't UTF-8",
     lambda: add("bounding_box_train/0001_c1s1_000001_\udcff.jpg"), 3, "In target, 1 files",
     r"can't be used for a character in the name (\udcff); rename"),
    ("folder", "", "names with odd spaces and joined emoji",
     lambda: add("train/9_1_at 3.04\u202fPM \U0001f468\u200d\U0001f469.jpg"), 0),
    # lists
    ("msmt17", "", "list with a negative pid", lambda: append("list_query.txt", "0003/x.jpg -1"), 3,
     "Line 2 of target/list_query.txt"),
    ("msmt17", "", "list with a path upwards",
     lambda: append("list_query.txt", "../train/0000/0000_001_01_0303morning_0008_0.jpg 3"), 3,
     "aren't there"),
    ("msmt17", "", "list with a file twice", lambda: append("list_query.txt", QUERY_OF_MSMT17), 3,
     "names '0003/0003_002_05_0303evening"),
    ("msmt17", "", "list empty", lambda: add("list_gallery.txt", ""), 3,
     "list_gallery.txt in target list no images"),
    ("msmt17", "", "both versions", lambda: os.mkdir("target/mask_train_v2"), 3,
     "has both versions'"),
    # links
    ("msmt17", "", "list a link out of the root",
     lambda: replace_by_link("list_query.txt", f"../{OUTSIDE}"), 3,
     "target/list_query.txt is a link that leads out"),
    ("market1501", "", "link out of the root", lambda: replace_by_link(BOX, f"../../{OUTSIDE}"), 3,
     f"target/{BOX} is a link that leads out of the data set's root; copy the files in instead"),
    ("market1501", "", "broken link", lambda: replace_by_link(BOX, "gone.jpg"), 3,
     "target/bounding_box_train has a broken link", "'0005_c1s1_000005_00.jpg'"),
    ("market1501", "", "pipe with an image's name", lambda: os.mkfifo(f"target/{BOX}"), 3,
     "'0005_c1s1_000005_00.jpg', which is no file"),
    # sets that can be read, and hardly used
    ("market1501", "", "test people also in train",
     lambda: add("bounding_box_train/0007_c1s1_000001_00.jpg"), 0,
     "target: 1 of 2 people in query are also in train (e.g. pid 7)"),
    ("market1501", "", "query without a match",
     lambda: remove("bounding_box_test/0007_c2s1_000007_01.jpg"), 0,
     "target: 1 of 2 queries have no match from another camera"),
    ("market1501", "", "gallery of other people",
     lambda: fill("bounding_box_test", "0099_c1s1_000001_00.jpg"), 3,
     "No query in target has an image of the same pid and another camera"),
    ("market1501", "", "one camera only", have_one_camera, 3,
     "are by camera 1", "another camera's number"),
    ("market1501", "", "query and gallery exchanged", exchange, 0,
     "target: 2 query images have pid 0 or -1", "aren't exchanged"),
    ("folder", "", "other splits beside", add_other_splits, 0,
     "target: images right in target are not read",
     "target: images in 'test', 'val' of target are not read"),
    ("folder", NO_NORM, "times of day for cameras", lambda: fill("train", *DATES), 0,
     "target: the pids of most training images look like dates",
     "target: there are 24 cameras for 24 training images",
     "target: cluster.camera_norm=true takes no camera's mean out"),
    ("market1501", "", "one training image",
     lambda: fill("bounding_box_train", "0001_c1s1_000001_00.jpg"), 3,
     "There is 1 training image in target, and pseudo-labels need at least 2"),
    ("folder", "", "no known pid, and the bound wanted", forget_pids, 3,
     "supervised_bound=true needs the target's identities"),
    ("folder", "", "a folder of images among images", lambda: add("train/0009/9_1_a.jpg"), 0,
     "target: 1 files or folders in target are passed over, e.g. 'train/0009'"),
    ("market1501", NO_SOURCE, "a source that is needed and isn't there", nothing, 3,
     "cluster.source_weight above 0 needs a source"),
]  # fmt: skip


def spoiled(
    layout: str, settings: str, name: str, spoil: Callable[[], object], code: int, *says: str
) -> Case:
    def make() -> None:
        market("source")
        WORLDS[layout]("target")
        spoil()

    command = f"{VALIDATE} target.layout={layout}{settings}"
    return case("Folders", f"{layout}: {name}", make, command, code, *says)


CASES = [
    case("Folders", "the same root twice", lambda: market("source"),
         f"{VALIDATE} target.root=source", 0, "are the same folder", "target.root"),
    case("Folders", "the training folder of the target as source", lambda: market("target"),
         f"{VALIDATE} source.root=target/bounding_box_train source.layout=folder", 0,
         "12 images are read as source and as target"),
    case("Folders", "root absent, with a newline and colours in its name",
         lambda: market("source"), f"""{VALIDATE} 'target.root="no\\n\\e[31mwhere"'""", 3,
         "root no\\n\\x1b[31mwhere isn't a folder"),
    case("Folders", "source not given", nothing, "validate demo", 3,
         "source.root is not set", "source.root=DIR"),
    case("Folders", "root s3://b/m", lambda: market("source"), f"{VALIDATE} target.root=s3://b/m",
         3, "s3://b/m is a URI"),
    *(spoiled(*row) for row in SPOILED),
]  # fmt: skip
