"""Names become records, and what is odd about them is told.

Folders that are refused: tests/faults/bad_folders.py.
"""

from typing import Any

import pyarrow as pa
import pytest

from daal.data.layout_checks import PUBLISHED, check_counts, check_names
from daal.data.layouts import NAMES, load_records
from daal.data.records import Split, of_split, records_of


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


Row = tuple[str, int, int, Split]


def rows_of(records: pa.Table) -> list[Row]:
    return [(r["path"], r["pid"], r["camid"], r["split"]) for r in records.to_pylist()]


# As they come back: by split, then by path.
MARKET = [
    ("bounding_box_train/0002_c1s1_000451_03.jpg", 2, 1, "train"),
    ("bounding_box_train/0007_c3s2_000451_01.jpg", 7, 3, "train"),
    ("query/0010_c2s1_000100_00.jpg", 10, 2, "query"),
    ("bounding_box_test/-1_c4s6_000200_01.jpg", -1, 4, "gallery"),
    ("bounding_box_test/0000_c1s1_000200_01.jpg", 0, 1, "gallery"),
    ("bounding_box_test/0010_c1s1_000200_01.jpg", 10, 1, "gallery"),
]
DUKE = [
    ("bounding_box_train/0001_c2_f0046182.jpg", 1, 2, "train"),
    ("query/0005_c2_f0046985.jpg", 5, 2, "query"),
    ("bounding_box_test/0005_c8_f0046985.jpg", 5, 8, "gallery"),
]
PLAIN = [
    ("train/-_c3_b.png", -2, 3, "train"),
    ("train/7_2_a.JPG", 7, 2, "train"),
    ("query/9_1.jpg", 9, 1, "query"),
    ("gallery/-1_2_x.jpg", -1, 2, "gallery"),
    ("gallery/0009_c2s1_000451_03.jpg", 9, 2, "gallery"),
]
IN_THE_ROOT = [("-_1_a.jpg", -2, 1, "train"), ("-_2_b.jpg", -2, 2, "train")]
LITTER = ("Thumbs.db", ".DS_Store", "._0002_c1s1_000451_03.jpg", "readme.txt")


@pytest.mark.parametrize(
    ("layout", "rows"),
    [("market1501", MARKET), ("market1501", MARKET[:2]), ("dukemtmc", DUKE), ("folder", PLAIN),
     ("folder", IN_THE_ROOT)],
)  # fmt: skip
def test_names_become_records_in_order(layout, rows, tmp_path):
    folder = rows[0][0].rpartition("/")[0]
    touch(tmp_path, *(path for path, *_ in reversed(rows)), *(f"{folder}/{x}" for x in LITTER))
    assert rows_of(load_records(layout, str(tmp_path))) == rows


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("mask_train_v2", "mask_test_v2")])
def test_msmt17_lists_of_both_versions(tmp_path, train, test):
    lists = {
        "list_train": (train, "0000/0000_000_01_0303morning_0008_0.jpg 0"),
        "list_val": (train, "0000/0000_001_14_0303noon_0009_1.jpg 0"),
        "list_query": (test, "0003/0003_002_05_0303evening_0001_0.jpg 3"),
        "list_gallery": (test, "0003/0003_003_06_0303evening_0001_0.jpg 3"),
    }
    for name, (folder, line) in lists.items():
        touch(tmp_path, f"{folder}/{line.split()[0]}")
        (tmp_path / f"{name}.txt").write_text(f"{line}\n")
    assert rows_of(load_records("msmt17", tmp_path)) == [
        (f"{train}/0000/0000_000_01_0303morning_0008_0.jpg", 1, 1, "train"),
        (f"{train}/0000/0000_001_14_0303noon_0009_1.jpg", 1, 14, "train"),
        (f"{test}/0003/0003_002_05_0303evening_0001_0.jpg", 4, 5, "query"),
        (f"{test}/0003/0003_003_06_0303evening_0001_0.jpg", 4, 6, "gallery"),
    ]


def test_links_inside_the_root__and_a_root_that_is_one(tmp_path):
    root = touch(tmp_path / "data", *(path for path, *_ in MARKET))
    (root / "bounding_box_train" / "0009_c1s1_000451_03.jpg").symlink_to(root / MARKET[0][0])
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert len(load_records("market1501", tmp_path / "link")) == len(MARKET) + 1


def published(layout):
    num_train, num_pids, num_query, num_gallery, num_junk = PUBLISHED[layout]
    return pa.concat_tables(
        [
            images(num_train, pid=[n % num_pids + 1 for n in range(num_train)], split="train"),
            images(num_query, pid=1, split="query"),
            images(num_gallery, pid=1, split="gallery"),
            images(num_junk, pid=-1, split="gallery"),
        ]
    )


def images(number: int, **known: Any) -> pa.Table:
    return records_of([str(n) for n in range(number)], camid=1, **known)


@pytest.mark.parametrize("layout", PUBLISHED)
def test_published_counts_give_no_warning(layout):
    assert check_counts(layout, published(layout)) == []


def test_other_counts_are_told() -> None:
    whole = published("market1501")
    missing_one = whole.slice(1, len(whole) - 2)
    (warning,) = check_counts("market1501", missing_one)
    assert "12,935 training images where 12,936 were published" in warning
    assert "3,818 junk boxes where 3,819" in warning and "query" not in warning
    train_only = of_split(whole, "train")
    assert check_counts("market1501", train_only) == []
    assert check_counts("folder", missing_one) == []


def named(*names: str) -> pa.Table:
    """Training images of these names in a plain folder."""
    pattern = NAMES["folder"][0]
    found = [match for match in map(pattern.fullmatch, names) if match]
    pids = [int(match["pid"].replace("-", "-2")) for match in found]
    return records_of(names, pid=pids, camid=[int(match["camid"]) for match in found])


GRID = [(pid, cam, n) for pid in range(1, 7) for cam in (1, 2) for n in range(3)]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("20240131_{t:06}_{n}.jpg", ["look like dates", "36 cameras for 36 training images"]),
        ("5_{cam}_{t}.jpg", ["are of one person (an unknown one is written -)"]),
        ("{cam}_{pid:03}_{n}.jpg", ["2 people by 6 cameras, as if the two numbers were exchanged"]),
        ("{pid}_{frame}.jpg", ["no person has two training images by one camera"]),
        ("{pid}_{frame}{pid}.jpg", ["36 cameras for 36 training images"]),
        ("-_{t}_x.jpg", ["36 cameras for 36 training images"]),
        ("{pid}_{cam}_{n}.jpg", []),
        ("0_{cam}_{pid}{n}.jpg", ["36 training images have pid 0", "are of one person"]),
        ("-_{cam}_{t}.jpg", []),
    ],
)
def test_names_whose_numbers_are_others(name, says):
    names = [
        name.format(pid=pid, cam=cam, n=n, t=100 * pid + 10 * cam + n, frame=3 * cam + n)
        for pid, cam, n in GRID
    ]
    found = check_names(named(*names))
    assert len(found) == len(says)
    for warning, words in zip(found, says, strict=True):
        assert words in warning and ("is read as " in warning or "pid 0" in words)


def test_cameras_of_one_image():
    many = [f"{pid}_1_{n}.jpg" for pid in (1, 2, 3, 4) for n in range(10)]
    few = [f"{pid}_{camid}_0.jpg" for pid, camid in ((1, 2), (2, 3))]
    (warning,) = check_names(named(*many, *few))
    assert "2 of 3 cameras have a single training image" in warning
    assert check_names(named(*many, *few, "1_2_1.jpg")) == []
