"""Data sets' folders that aren't what their layout says."""

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from bad_input import PICTURE, Case, market, validate, write

MSMT17 = {
    "list_train.txt": [f"{pid:04}/{pid:04}_{n:03}_0{n}_0303morning_0008_0.jpg {pid}"
                       for pid in range(4) for n in (1, 2, 3)],
    "list_val.txt": ["0000/0000_009_04_0303noon_0009_1.jpg 0"],
    "list_query.txt": ["0003/0003_002_05_0303evening_0001_0.jpg 3"],
    "list_gallery.txt": ["0003/0003_003_06_0303evening_0001_0.jpg 3"],
}  # fmt: skip


def msmt17(root: str) -> str:
    for name, lines in MSMT17.items():
        write(f"{root}/{name}", "\n".join(lines) + "\n")
        top = "train" if name in ("list_train.txt", "list_val.txt") else "test"
        for line in lines:
            write(f"{root}/{top}/{line.split()[0]}")
    return root


def plain(root: str) -> str:
    for pid in (1, 2, 3, 4):
        for camid in (1, 2, 3):
            write(f"{root}/train/{pid}_{camid}_a.jpg")
    write(f"{root}/query/7_1_a.jpg")
    write(f"{root}/gallery/7_2_a.jpg")
    return root


WORLDS = {"market1501": market, "dukemtmc": market, "msmt17": msmt17, "folder": plain}


def case(
    name: str,
    spoil: Callable[[], object],
    *says: str,
    code: int = 3,
    layout: str = "market1501",
    settings: tuple[str, ...] = (),
) -> Case:
    """A target in good order, spoiled; the source is in order."""

    def make() -> list[str]:
        market("source")
        WORLDS[layout]("target")
        spoil()
        return validate(f"target.layout={layout}", *settings)

    return Case("Folders", f"{layout}: {name}", make, code, says)


def remove(*names: str) -> Callable[[], None]:
    def spoil() -> None:
        for name in names:
            path = Path("target") / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def add(name: str, data: bytes | str = PICTURE) -> Callable[[], object]:
    return lambda: write(f"target/{name}", data)


def emptied(name: str) -> Callable[[], None]:
    def spoil() -> None:
        remove(name)()
        (Path("target") / name).mkdir()

    return spoil


def renamed(old: str, new: str) -> Callable[[], object]:
    return lambda: os.rename(f"target/{old}", f"target/{new}")


def linked(name: str, to: str) -> Callable[[], None]:
    """`target/NAME` becomes a link; the folder "outside" is beside the roots."""

    def spoil() -> None:
        write("outside/0005_c1s1_000005_00.jpg")
        path = Path("target") / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(to)

    return spoil


def everyone_by_camera_one() -> None:
    for folder in ("query", "bounding_box_test"):
        for file in list(Path("target", folder).iterdir()):
            pid = file.name.split("_")[0]
            file.rename(file.with_name(f"{pid}_c1s1_{folder[:1] == 'q':06}_00.jpg"))


def exchanged() -> None:
    os.rename("target/query", "target/old")
    os.rename("target/bounding_box_test", "target/query")
    os.rename("target/old", "target/bounding_box_test")


def listed(name: str, line: str) -> Callable[[], None]:
    def spoil() -> None:
        with Path("target", name).open("a") as file:
            file.write(f"{line}\n")

    return spoil


def train_of(*names: str) -> Callable[[], None]:
    def spoil() -> None:
        emptied("bounding_box_train")()
        for name in names:
            write(f"target/bounding_box_train/{name}")

    return spoil


def roots() -> list[Case]:
    """What is given as a root and is none."""

    def root(name: str, setting: str, make: Callable[[], object], *says: str) -> Case:
        def everything() -> list[str]:
            market("source")
            make()
            return validate(setting)

        return Case("Folders", name, everything, 3, says)

    def the_same() -> list[str]:
        market("source")
        return validate("target.root=source")

    def a_part_of_it() -> list[str]:
        market("target")
        return validate("source.root=target/bounding_box_train", "source.layout=folder")

    return [
        Case("Folders", "the same root twice", the_same, 0, ("are the same folder", "target.root")),
        root("root absent", "target.root=nowhere", lambda: None, "root nowhere isn't a folder"),
        root("root with a newline and colours", 'target.root="no\\n\\e[31mwhere"', lambda: None,
             "root no\\n\\x1b[31mwhere isn't a folder"),
        Case("Folders", "source not given", lambda: ["validate", "demo"], 3,
             ("source.root is not set", "source.root=DIR")),
        *(root(f"root {uri}", f"target.root={uri}", lambda: None, f"{uri} is a URI")
          for uri in ("https://host/m", "file:///data/m")),
        root("root an archive", "target.root=m.tar", lambda: write("m.tar"),
             "m.tar isn't a folder", "unpacked"),
        Case("Folders", "the training folder of the target as source", a_part_of_it, 0,
             ("12 images are read as source and as target",)),
    ]  # fmt: skip


def missing() -> list[Case]:
    """A split's folder or list absent, empty, or a file."""

    def a_file() -> None:
        remove("query")()
        write("target/query")

    return [
        *(case(f"no {name}", remove(name), f"target/{name} is missing")
          for name in ("bounding_box_train", "query", "bounding_box_test")),
        *(case(f"no {name}", remove(name), f"target/{name} is missing", layout="folder")
          for name in ("train", "query", "gallery")),
        *(case(f"no {name}", remove(name), f"target/{name} is missing", layout="msmt17")
          for name in MSMT17),
        case("query empty", emptied("query"), "target/query holds no images; unpack"),
        case("query a file", a_file, "target/query can't be read (Not a directory)"),
    ]  # fmt: skip


def other_layouts() -> list[Case]:
    """A data set given as another."""
    said = {
        ("market1501", "dukemtmc"): "can't be read as dukemtmc names",
        ("market1501", "msmt17"): "has neither train nor mask_train_v2",
        ("market1501", "folder"): "train is missing",
        ("msmt17", "market1501"): "bounding_box_train is missing",
        ("msmt17", "folder"): "train holds no images",
        ("folder", "msmt17"): "list_train.txt is missing",
    }

    def given_as(layout: str, given: str) -> Callable[[], list[str]]:
        def make() -> list[str]:
            market("source")
            WORLDS[layout]("target")
            return validate(f"target.layout={given}")

        return make

    return [
        Case("Folders", f"{layout} given as {given}", given_as(layout, given), 3, (says, "target"))
        for (layout, given), says in said.items()
    ]


def names() -> list[Case]:
    """Files whose names can't be understood."""
    bad = {
        "holiday.jpg": "'bounding_box_train/holiday.jpg'",
    }
    characters = {
        "0001_c1s1_000001_\udcff.jpg": r"\udcff",
    }
    accepted = ("at 3.04\u202fPM", "\U0001f468\u200d\U0001f469")
    return [
        *(case(f"file {name!a}", add(f"bounding_box_train/{name}"), "In target, 1 files", shown,
               "can't be read as market1501 names")
          for name, shown in bad.items()),
        *(case(f"file {name!a}", add(f"bounding_box_train/{name}"), "In target, 1 files",
               f"can't be used for a character in the name ({character}); rename")
          for name, character in characters.items()),
        *(case(f"file {name!a}", add(f"train/9_1_{name}.jpg"), code=0, layout="folder")
          for name in accepted),
    ]  # fmt: skip


def lists() -> list[Case]:
    """MSMT17's lists."""
    lines = {
        "a negative pid": ("0003/x.jpg -1", "Line 2 of target/list_query.txt"),
        "a path upwards": ("../train/0000/0000_001_01_0303morning_0008_0.jpg 3", "aren't there"),
        "a file twice": (MSMT17["list_query.txt"][0], "names '0003/0003_002_05_0303evening"),
    }
    cases = [
        case(f"list with {name}", listed("list_query.txt", line), said, layout="msmt17")
        for name, (line, said) in lines.items()
    ]
    return [
        *cases,
        case("list empty", add("list_gallery.txt", ""), "list_gallery.txt in target list no images",
             layout="msmt17"),
        case("both versions", lambda: os.mkdir("target/mask_train_v2"), "has both versions'",
             layout="msmt17"),
        case("list a link out of the root",
             linked("list_query.txt", "../outside/0005_c1s1_000005_00.jpg"),
             "target/list_query.txt is a link that leads out", layout="msmt17"),
    ]  # fmt: skip


def tables() -> list[Case]:
    """A target in a table or in tar files."""

    def given(name: str, root: str, make: Callable[[], object], *says: str) -> Case:
        def everything() -> list[str]:
            market("source")
            make()
            layout = "webdataset" if root.endswith(".tar") else "table"
            return validate(
                f"target.layout={layout}", f"target.root={root}", "supervised_bound=false"
            )

        return Case("Tables and tar files", name, everything, 3, says)

    def table(*lines: str) -> Callable[[], None]:
        return lambda: (write("set/a.jpg"), write("set/images.csv", "\n".join(lines)))[0]

    def cut_off() -> None:
        with tarfile.open("set.tar", "w") as tar:
            for name in (write("a.jpg"), write("b.jpg")):
                tar.add(name)
        os.truncate("set.tar", 900)

    rows = [f"a.jpg,{n},0,50,50" for n in range(100, 120)]
    return [
        given("a table that isn't there", "set/gone.csv", table("path"),
              "There is no table set/gone.csv"),
        given("no column path", "set/images.csv", table("file", "a.jpg"), "has no column path"),
        given("a pid that is no number", "set/images.csv", table("path,pid", "a.jpg,1.5"),
              "the column pid of set/images.csv is double"),
        given("a path upwards", "set/images.csv", table("path", "../a.jpg"),
              "'../a.jpg', which isn't in the table's folder"),
        given("boxes outside", "set/images.csv", table("path,x,y,w,h", *rows),
              "lies outside of the image, which has 16 x 32 pixels"),
        given("a tar cut off", "set.tar", cut_off, "set.tar can't be read as a tar file"),
    ]  # fmt: skip


def links() -> list[Case]:
    name = "bounding_box_train/0005_c1s1_000005_00.jpg"
    out = "is a link that leads out of the data set's root; copy the files in instead (cp -rL makes"
    return [
        case("link out of the root", linked(name, "../../outside/0005_c1s1_000005_00.jpg"),
             f"target/{name} {out}"),
        case("broken link", linked(name, "gone.jpg"), "target/bounding_box_train has a broken link",
             "'0005_c1s1_000005_00.jpg'"),
        case("pipe with an image's name", lambda: os.mkfifo(f"target/{name}"),
             "'0005_c1s1_000005_00.jpg', which is no file"),
    ]  # fmt: skip


def people() -> list[Case]:
    """Sets that can be read, and hardly used."""
    no_match = "No query in target has an image of the same pid and another camera"
    return [
        case("test people also in train", add("bounding_box_train/0007_c1s1_000001_00.jpg"),
             "target: 1 of 2 people in query are also in train (e.g. pid 7)", code=0),
        case("query without a match", remove("bounding_box_test/0007_c2s1_000007_01.jpg"),
             "target: 1 of 2 queries have no match from another camera", code=0),
        case("gallery of other people", lambda: (emptied("bounding_box_test")(),
             add("bounding_box_test/0099_c1s1_000001_00.jpg")()), no_match),
        case("one camera only", everyone_by_camera_one, "are by camera 1",
             "another camera's number"),
        case("query and gallery exchanged", exchanged,
             "target: 2 query images have pid 0 or -1", "aren't exchanged", code=0),
        case("other splits beside", lambda: (add("val/8_1_a.jpg")(), add("test/deep/8_1_a.jpg")(),
                                             add("a.jpg")(), add("notes/x.txt")()),
             "target: images right in target are not read",
             "target: images in 'test', 'val' of target are not read", code=0,
             layout="folder"),
        case("times of day for cameras", lambda: (emptied("train")(), [
                 add(f"train/20240131_{153000 + n}_{n}.jpg")() for n in range(24)]),
             "target: the pids of most training images look like dates",
             "target: there are 24 cameras for 24 training images",
             "target: cluster.camera_norm=true takes no camera's mean out", code=0,
             layout="folder", settings=("cluster.camera_norm=true", "supervised_bound=false")),
        case("one training image", train_of("0001_c1s1_000001_00.jpg"),
             "There is 1 training image in target, and pseudo-labels need at least 2"),
        case("no known pid, and the bound wanted",
             lambda: [os.rename(file, file.with_name(f"-_{n}_a.jpg"))
                      for n, file in enumerate(sorted(Path("target/train").iterdir()))],
             "supervised_bound=true needs the target's identities", layout="folder"),
        case("a folder of images among images", add("train/0009/9_1_a.jpg"),
             "target: 1 files or folders in target are passed over, e.g. 'train/0009'",
             code=0, layout="folder"),
        case("a source that is needed and isn't there", lambda: None,
             "cluster.source_weight above 0 needs a source",
             settings=("source.root=''", "adapt.batch_source=0", "cluster.source_weight=0.1")),
    ]  # fmt: skip


CASES = [
    *roots(), *missing(), *other_layouts(), *names(), *lists(), *links(), *people(), *tables(),
]  # fmt: skip
