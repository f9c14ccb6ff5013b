"""Tables, tar files, buckets and joined sets: one listing, and the bytes of each image."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from daal.config import DatasetConfig
from daal.data import images
from daal.data.layout_checks import check_identities, check_names
from daal.data.records import records_of
from daal.data.sources import listing, load_set, read_image, roots_of, wheres
from daal.errors import DataError

NAMES = {  # of the images of a small set, and what its table says
    "train/1_1_a.jpg": (1, 1), "train/2_1_b.jpg": (2, 1), "train/2_2_c.jpg": (2, 2),
    "query/7_1_a.jpg": (7, 1), "gallery/7_2_a.jpg": (7, 2),
}  # fmt: skip


def picture(number: int, height: int = 32, width: int = 16) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def folder(root: Path) -> Path:
    for number, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(number))
    return root


def rows() -> list[dict[str, Any]]:
    return [
        {"path": name, "pid": pid, "camid": camid, "split": name.partition("/")[0]}
        for name, (pid, camid) in reversed(NAMES.items())
    ]


def csv(root: Path) -> tuple[str, str]:
    folder(root)
    lines = ["path,split,pid,camid,notes"]
    lines += [f"{r['path']},{r['split']},{r['pid']},{r['camid']},x" for r in rows()]
    (root / "images.csv").write_text("\n".join(lines))
    return "table", f"{root}/images.csv"


def embedded(root: Path) -> tuple[str, str]:
    folder(root)
    some = [{**row, "image": (root / row["path"]).read_bytes()} for row in rows()]
    pq.write_table(pa.Table.from_pylist(some), root / "images.parquet", row_group_size=2)
    for name in NAMES:
        (root / name).unlink()
    return "table", f"{root}/images.parquet"


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def tars(root: Path) -> tuple[str, str]:
    root.mkdir()
    for at in range(2):
        with tarfile.open(root / f"{at:03}.tar", "w") as tar:
            for number, row in enumerate(reversed(rows())):
                if number % 2 == at:
                    add(tar, row["path"], picture(number))
                    label = json.dumps(row).encode()
                    add(tar, row["path"].replace(".jpg", ".json"), label)
    return "webdataset", str(root)


def read_all(settings: DatasetConfig) -> list[tuple[bytes, str | None]]:
    return [read_image(roots_of(settings), where) for where in wheres(load_set(settings))]


@pytest.mark.parametrize("make", [csv, embedded, tars])
def test_one_set_from_a_folder_a_table_and_tars__the_same_images(make: Any, tmp_path: Path) -> None:
    given = DatasetConfig(layout="folder", root=str(folder(tmp_path / "folder")))
    layout, root = make(tmp_path / "other")
    other = DatasetConfig(layout=layout, root=root)
    wanted, found = load_set(given), load_set(other)
    names = ["path", "pid", "camid", "split", "tracklet", "time"]
    assert wanted.select(names) == found.select(names)
    assert read_all(given) == read_all(other)
    sizes = listing(roots_of(given), wanted)["size"]
    if make is not embedded:
        assert sizes == listing(roots_of(other), found)["size"]


def test_missing_columns_mean_unknown__names_become_numbers(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "a.csv").write_text("path\ntrain/1_1_a.jpg\ntrain/2_1_b.jpg\n")
    paths = ["train/1_1_a.jpg", "train/2_1_b.jpg"]
    assert load_set(DatasetConfig(layout="table", root=f"{root}/a.csv")) == records_of(paths)
    (root / "b.csv").write_text(
        "path,pid,camid,tracklet,time\ntrain/1_1_a.jpg,bob,-,4,1.5\ntrain/2_1_b.jpg,alice,west,,-\n"
    )
    assert load_set(DatasetConfig(layout="table", root=f"{root}/b.csv")) == records_of(
        paths, pid=[2, 1], camid=[-1, 1], tracklet=[4, -1], time=[1500, -1]
    )


def test_without_cameras__nothing_is_said_of_them() -> None:
    numbers = range(4, 40)
    train = records_of([f"{n}.jpg" for n in numbers], pid=[n // 4 for n in numbers])
    test = records_of(["q.jpg", "g.jpg"], pid=1, split=["query", "gallery"])
    assert check_names(train) == []
    both = pa.concat_tables([train, test])
    assert len(check_identities("table", "a.csv", both)) == 1  # a person of both


def test_boxes_are_cut_out__and_clipped_to_their_frame(tmp_path: Path) -> None:
    (tmp_path / "frame.png").write_bytes(b"")
    frame = Image.new("RGB", (100, 50), (10, 20, 30))
    frame.paste((200, 50, 50), (20, 10, 36, 42))
    frame.save(tmp_path / "frame.png")
    boxes = [(20, 10, 16, 32), (90, 40, 50, 50), (100, 0, 5, 5)]
    lines = ["path,x,y,w,h", *(f"frame.png,{x},{y},{w},{h}" for x, y, w, h in boxes)]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    settings = DatasetConfig(layout="table", root=f"{tmp_path}/boxes.csv")
    paths = load_set(settings)["path"].to_pylist()
    found = dict(zip(paths, read_all(settings), strict=True))
    data, reason = found["frame.png#20,10,16,32"]
    assert reason is None
    assert np.abs(images.decode(data, 32, 16).astype(int) - (200, 50, 50)).max() < 8
    assert images.opened(found["frame.png#90,40,50,50"][0]).size == (10, 10)
    assert "lies outside of the image" in str(found["frame.png#100,0,5,5"][1])


def test_joined_sets__people_and_cameras_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "a")
    csv(tmp_path / "b")
    monkeypatch.setenv("HOME", str(tmp_path))
    sets = ["- {layout: folder, root: a}", "- {layout: table, root: ~/b/images.csv}"]
    (tmp_path / "sets.yaml").write_text("\n".join(sets))
    settings = DatasetConfig(layout="joined", root=f"{tmp_path}/sets.yaml")
    records = load_set(settings).to_pylist()
    assert [(r["path"], r["pid"], r["camid"]) for r in records if r["split"] != "train"] == [
        ("1/query/7_1_a.jpg", 7, 1), ("2/query/7_1_a.jpg", 15, 4),
        ("1/gallery/7_2_a.jpg", 7, 2), ("2/gallery/7_2_a.jpg", 15, 5),
    ]  # fmt: skip
    assert len({r["pid"] for r in records}) == 6 and len({r["camid"] for r in records}) == 4
    assert all(reason is None for _, reason in read_all(settings))


def test_joined_sets__people_after_nobody(tmp_path: Path) -> None:
    for name, line in (("a", "a.jpg,,,"), ("b", "b.jpg,1,0,0")):
        (tmp_path / f"{name}.csv").write_text(f"path,pid,camid,tracklet\n{line}\n")
    sets = [f"- {{layout: table, root: {name}.csv}}" for name in ("a", "b")]
    (tmp_path / "sets.yaml").write_text("\n".join(sets))
    records = load_set(DatasetConfig(layout="joined", root=f"{tmp_path}/sets.yaml"))
    known = records_of(["1/a.jpg", "2/b.jpg"], pid=[-2, 1], camid=[-1, 0], tracklet=[-1, 0],
                       part=[0, 1], file=["a.jpg", "b.jpg"])  # fmt: skip
    assert records == known


@pytest.mark.parametrize(
    "content", ["", "7", "- a", "- {layout: folder}", "- {layout: x, root: a}", "[{", "[]",
                "- {layout: joined, root: sets.yaml}"],
)  # fmt: skip
def test_lists_of_sets_that_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "sets.yaml").write_text(content)
    with pytest.raises(DataError, match=r"sets\.yaml .*write a line like"):
        load_set(DatasetConfig(layout="joined", root=f"{tmp_path}/sets.yaml"))


def text(*lines: str) -> bytes:
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (text("file,pid", "a.jpg,1"), "has no column path"),
        (text("path,pid", "a.jpg,1.5"), "column pid of .* is double; make it whole numbers"),
        (text("path,pid", "a.jpg,true"), "column pid of .* is bool"),
        (text("path,pid", "a.jpg,-3"), "numbers below -2"),
        (text("path,split", "a.jpg,test"), "has 'test' as a split; write train, query, gallery"),
        (text("path", "../a.jpg"), "isn't in the table's folder"),
        (text("path", "/etc/a.jpg"), "isn't in the table's folder"),
        (text("path", "out/a.jpg"), "out is a link that leads out"),
        (text("path", "https://host/a.jpg"), "a URI that images aren't read from"),
        (text("path", "a.jpg", "a.jpg"), "more than once"),
        (text("path,x,y", "a.jpg,1,2"), "a box without w, h"),
        (text("path,x,y,w,h", "a.jpg,1,2,b,4"), "a box that isn't numbers"),
        (text("path,time", "a.jpg,noon"), "the column time of .* is string"),
        (text("path,split", "a.jpg,query"), "query images of unknown pid"),
        (text("path", ""), "has no rows"),
        (text("path,pid", "a.jpg"), "can't be read as a table"),
        (b"", "can't be read as a table"),
    ],
)
def test_tables_that_are_refused(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/out").symlink_to("/")
    (tmp_path / "set/images.csv").write_bytes(content)
    with pytest.raises(DataError, match=says):
        load_set(DatasetConfig(layout="table", root=f"{tmp_path}/set/images.csv"))


def test_tars_that_are_refused(tmp_path: Path) -> None:
    settings = DatasetConfig(layout="webdataset", root=tars(tmp_path / "set")[1])
    data = (tmp_path / "set/001.tar").read_bytes()
    (tmp_path / "set/001.tar").write_bytes(data[: len(data) // 2 - 300])
    with pytest.raises(DataError, match=r"001\.tar can't be read as a tar file"):
        load_set(settings)
    (tmp_path / "set/001.tar").write_bytes((tmp_path / "set/000.tar").read_bytes())
    with pytest.raises(DataError, match="more than once"):
        load_set(settings)
    (tmp_path / "set/001.tar").unlink()
    (tmp_path / "set/000.tar").unlink()
    with pytest.raises(DataError, match=r"no \.tar file"):
        load_set(settings)


def test_a_login_in_a_uri__is_refused_and_not_shown() -> None:
    with pytest.raises(DataError, match="has a login in it") as refused:
        load_set(DatasetConfig(layout="folder", root="s3://KEY:SECRET@bucket/set"))
    assert "KEY:SECRET" not in str(refused.value)


def test_a_file_that_is_gone_or_cut_off__has_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path\ngone.jpg\n")
    settings = DatasetConfig(layout="table", root=f"{tmp_path}/a.csv")
    assert listing(roots_of(settings), load_set(settings))["size"].to_pylist() == [-1]
    assert "can't be read (No such file" in str(read_all(settings)[0][1])


def test_veri_names(tmp_path: Path) -> None:
    for name in ("image_train/0001_c001_00016450_0.jpg", "image_query/0002_c002_00030600_0.jpg",
                 "image_test/0002_c003_00030605_1.jpg"):  # fmt: skip
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    records = load_set(DatasetConfig(layout="veri", root=os.fspath(tmp_path))).to_pylist()
    assert [(r["pid"], r["camid"], r["split"]) for r in records] == [
        (1, 1, "train"), (2, 2, "query"), (2, 3, "gallery"),
    ]  # fmt: skip
