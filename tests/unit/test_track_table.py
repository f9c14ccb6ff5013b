"""The table that trackers' output becomes."""

import io
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image

from daal.config import DatasetConfig
from daal.data.records import distinct
from daal.data.sources import load_set, read_image, roots_of, wheres
from daal.errors import DataError
from pipelines.tools.track_table import write_track_table

BOXES = """\
1,7,11,21,20,40,1,-1,-1,-1
2,7,12,21,20,40,1,-1,-1,-1
1,8,-10,1,30,40,0.6
2,8,90,30,40,200,1
1,9,50,50,20,40,0
2,9,50,30,7,40,1
"""


@pytest.fixture
def sequence(tmp_path: Path) -> Path:
    """Two frames of 100 x 80 pixels whose red is the column and whose green is the row."""
    folder = tmp_path / "cameras/hall"
    (folder / "img1").mkdir(parents=True)
    (folder / "gt").mkdir()
    rows, columns = np.mgrid[:80, :100].astype(np.uint8)
    for frame in (1, 2):
        pixels = np.stack([columns, rows, np.full_like(rows, frame)], axis=2)
        Image.fromarray(pixels).save(folder / f"img1/{frame:06d}.png")
    (folder / "gt/gt.txt").write_text(BOXES)
    (folder / "seqinfo.ini").write_text("[Sequence]\nframeRate=25\nimExt=.png\n")
    return folder


def test_boxes_are_rows_of_a_set(sequence: Path, tmp_path: Path) -> None:
    table = tmp_path / "images.csv"
    # Left out: one with confidence 0, and one that is 7 pixels wide.
    assert write_track_table([sequence], table) == 4
    settings = DatasetConfig(layout="table", root=str(table))
    records = load_set(settings)
    assert pc.max(records["pid"]).as_py() < 0  # unknown
    assert distinct(records["camid"]) == {1}
    assert len(distinct(records["tracklet"])) == 2
    assert sorted(records["time"].to_pylist()) == [40, 40, 80, 80]  # ms
    by_box = {where.box: where for where in wheres(records)}
    assert set(by_box) == {(10, 20, 20, 40), (11, 20, 20, 40), (-11, 0, 30, 40), (89, 29, 40, 200)}
    data, reason = read_image(roots_of(settings), by_box[89, 29, 40, 200])
    assert reason is None
    assert Image.open(io.BytesIO(data)).size == (11, 51)  # cut off at the frame's edge


def test_every_second_frame_of_a_track(sequence: Path, tmp_path: Path) -> None:
    assert write_track_table([sequence], tmp_path / "images.csv", every=2) == 2


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("gt/gt.txt", "1,7,a,21,20,40", "Line 1 of .* is no box"),
        ("gt/gt.txt", "0,7,1,21,20,40", "Line 1 of .* is no box"),
        ("gt/gt.txt", "3,7,1,21,20,40", "no frame .*000003.png"),
        ("gt/gt.txt", "", "There are no boxes"),
        ("seqinfo.ini", "[Sequence]\nimDir=../../../elsewhere", "above the frames"),
    ],
)
def test_what_is_none__is_said(
    sequence: Path, tmp_path: Path, file: str, text: str, says: str
) -> None:
    (sequence / file).write_text(text)
    with pytest.raises(DataError, match=says):
        write_track_table([sequence], tmp_path / "images.csv")


def test_tracks_may_lie_elsewhere(sequence: Path, tmp_path: Path) -> None:
    (sequence / "gt/gt.txt").rename(tmp_path / "hall.txt")
    with pytest.raises(DataError, match="--tracks"):
        write_track_table([sequence], tmp_path / "images.csv")
    assert write_track_table([sequence], tmp_path / "images.csv", str(tmp_path)) == 4
