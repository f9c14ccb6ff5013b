"""Data sets' folders that aren't what their layout says."""

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from bad_input import BOXES, PICTURE, VALIDATE, Case, case, market, nothing, write

MSMT17 = {
    "list_train.txt": [f"{pid:04}/{pid:04}_{n:03}_0{n}_0303morning_0008_0.jpg {pid}"
                       for pid in range(4) for n in (1, 2, 3)],
    "list_val.txt": ["0000/0000_009_04_0303noon_0009_1.jpg 0"],
    "list_query.txt": ["0003/0003_002_05_0303evening_0001_0.jpg 3"],
    "list_gallery.txt": ["0003/0003_003_06_0303evening_0001_0.jpg 3"],
}  # fmt: skip
QUERY_OF_MSMT17 = MSMT17["list_query.txt"][0]
UPWARDS = "train/0000/0000_001_01_0303morning_0008_0.jpg"
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


def link(name: str, to: str) -> None:
    write(OUTSIDE)
    path = Path("target", name)
    path.unlink(missing_ok=True)
    path.symlink_to(to)


def append(name: str, line: str) -> None:
    with Path("target", name).open("a") as file:
        file.write(f"{line}\n")


SPOILED: list[tuple[str, str, Callable[[], object], int]] = [
    # layout and more settings, name, what spoils it, exit code
    ("market1501", "no bounding_box_train", lambda: remove("bounding_box_train"), 3),
    ("market1501", "no query", lambda: remove("query"), 3),
    ("folder", "no gallery", lambda: remove("gallery"), 3),
    ("msmt17", "no list_val.txt", lambda: remove("list_val.txt"), 3),
    ("market1501", "query empty", lambda: fill("query"), 3),
    ("market1501", "query a file", lambda: (remove("query"), add("query")), 3),
    ("dukemtmc", "names of market1501", nothing, 3),
    ("msmt17", "folders of market1501", lambda: (shutil.rmtree("target"), market("target")), 3),
    ("market1501", "a name that isn't UTF-8",
     lambda: add("bounding_box_train/0001_c1s1_000001_\udcff.jpg"), 3),
    ("folder", "names with odd spaces and joined emoji",
     lambda: add("train/9_1_at 3.04\u202fPM \U0001f468\u200d\U0001f469.jpg"), 0),
    # lists
    ("msmt17", "list with a negative pid", lambda: append("list_query.txt", "0003/x.jpg -1"), 3),
    ("msmt17", "list with a path upwards", lambda: append("list_query.txt", f"../{UPWARDS} 3"), 3),
    ("msmt17", "list with a file twice", lambda: append("list_query.txt", QUERY_OF_MSMT17), 3),
    ("msmt17", "list empty", lambda: add("list_gallery.txt", ""), 3),
    ("msmt17", "both versions", lambda: os.mkdir("target/mask_train_v2"), 3),
    # links
    ("msmt17", "list a link out of the root", lambda: link("list_query.txt", f"../{OUTSIDE}"), 3),
    ("market1501", "link out of the root", lambda: link(BOX, f"../../{OUTSIDE}"), 3),
    ("market1501", "broken link", lambda: link(BOX, "gone.jpg"), 3),
    ("market1501", "pipe with an image's name", lambda: os.mkfifo(f"target/{BOX}"), 3),
    # sets that can be read, and of little use
    ("market1501", "test people also in train",
     lambda: add("bounding_box_train/0007_c1s1_000001_00.jpg"), 0),
    ("market1501", "query without a match",
     lambda: remove("bounding_box_test/0007_c2s1_000007_01.jpg"), 0),
    ("market1501", "gallery of other people",
     lambda: fill("bounding_box_test", "0099_c1s1_000001_00.jpg"), 3),
    ("market1501", "one camera only",
     lambda: (fill("query", "0007_c1s1_1_0.jpg"), fill("bounding_box_test", "0007_c1s1_2_0.jpg")),
     3),
    ("market1501", "query and gallery exchanged",
     lambda: (fill("query", *BOXES["bounding_box_test"]),
              fill("bounding_box_test", *BOXES["query"])), 0),
    ("folder", "other splits beside",
     lambda: (add("val/8_1_a.jpg"), add("test/deep/8_1_a.jpg"), add("a.jpg"), add("notes/x.txt")),
     0),
    ("folder cluster.camera_norm=true supervised_bound=false", "times of day for cameras",
     lambda: fill("train", *(f"20240131_{153000 + n}_{n}.jpg" for n in range(24))), 0),
    ("market1501", "one training image",
     lambda: fill("bounding_box_train", "0001_c1s1_000001_00.jpg"), 3),
    ("folder", "no known pid, and the bound wanted",
     lambda: fill("train", "-_1_a.jpg", "-_2_a.jpg"), 3),
    ("folder", "a folder of images among images", lambda: add("train/0009/9_1_a.jpg"), 0),
    ("market1501 \"source.root=''\" adapt.batch_source=0 cluster.source_weight=0.1",
     "a source that is needed and isn't there", nothing, 3),
]  # fmt: skip


def spoiled(settings: str, name: str, spoil: Callable[[], object], code: int) -> Case:
    layout = settings.split()[0]

    def make() -> None:
        market("source")
        WORLDS[layout]("target")
        spoil()

    command = f"{VALIDATE} target.layout={settings}"
    return case("Folders", f"{layout}: {name}", make, command, code)


def without_test_images() -> None:
    market("source")
    market("target")
    remove("query")
    remove("bounding_box_test")


def cut_off_tar() -> None:
    with tarfile.open("set.tar", "w") as tar:
        for name in (write("a.jpg"), write("b.jpg")):
            tar.add(name)
    os.truncate("set.tar", 900)


def table(*lines: str) -> Callable[[], object]:
    return lambda: (write("set/a.jpg"), write("set/images.csv", "\n".join(lines)))


TABLES: list[tuple[str, str, Callable[[], object]]] = [
    # name, root, what makes it
    ("a table that isn't there", "set/gone.csv", table("path")),
    ("no column path", "set/images.csv", table("file", "a.jpg")),
    ("a pid that is no number", "set/images.csv", table("path,pid", "a.jpg,1.5")),
    ("a path upwards", "set/images.csv", table("path", "../a.jpg")),
    ("boxes outside", "set/images.csv",
     table("path,x,y,w,h", *(f"a.jpg,{n},0,50,50" for n in range(100, 120)))),
    ("a tar cut off", "set.tar", cut_off_tar),
]  # fmt: skip


def in_table(name: str, root: str, spoil: Callable[[], object]) -> Case:
    def make() -> None:
        market("source")
        spoil()

    layout = "webdataset" if root.endswith(".tar") else "table"
    command = f"{VALIDATE} target.layout={layout} target.root={root} supervised_bound=false"
    return case("Tables and tar files", name, make, command, 3)


CASES = [
    case("Folders", "a suite on images that can't be scored", without_test_images,
         "ablate table4 source.root=source target.root=target", 3),
    case("Folders", "the same root twice", lambda: market("source"),
         f"{VALIDATE} target.root=source", 0),
    case("Folders", "root absent, with a newline and colours in its name",
         lambda: market("source"), f"""{VALIDATE} 'target.root="no\\n\\e[31mwhere"'""", 3),
    case("Folders", "source not given", nothing, "validate demo", 3),
    case("Folders", "root https://host/m", lambda: market("source"),
         f"{VALIDATE} target.root=https://host/m", 3),
    *(spoiled(*row) for row in SPOILED),
    *(in_table(*row) for row in TABLES),
]  # fmt: skip
