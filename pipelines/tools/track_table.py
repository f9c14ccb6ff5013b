"""From trackers' output, MOT text files beside frames, to a table of images.

The format of MOTChallenge (https://motchallenge.net/instructions): a folder for each sequence, with
frames in `img1/000001.jpg` and on, and a file with a line `frame,id,x,y,w,h,confidence,...` for
each box, in pixels, frames and pixels counted from 1. `seqinfo.ini` may say other names and the
frame rate. A sequence is taken for a camera of its own, and a track for a tracklet.
"""

import configparser
import csv
import math
import os
from collections.abc import Iterator
from pathlib import Path

from daal.errors import DataError

HEADER = ("path", "x", "y", "w", "h", "camid", "tracklet", "time")
TRACKS = ("gt/gt.txt", "det/det.txt")  # where MOTChallenge has them, the first that is there
LEAST_SIDE = 8  # pixels of a box; a smaller one shows nobody


def write_track_table(
    sequences: list[Path], out: Path, tracks: str | None = None, every: int = 1
) -> int:
    """Write a CSV table with a row for each box, and return how many there are.

    Boxes with confidence 0, which MOTChallenge says to ignore, are left out, and so are those under
    8 pixels wide or high. What reads the table cuts boxes off at their frame's edge. `tracks` is
    the file of each sequence, or the folder with a file SEQUENCE.txt for each. Of each track every
    `every`th frame is taken.

    Raises:
        DataError: a file is missing or is none of these, or the table isn't above the frames.
    """
    if not out.parent.is_dir():
        raise DataError(f"--out {out}: there is no folder {out.parent}; make it.")
    rows = [
        row
        for camid, sequence in enumerate(sequences, start=1)
        for row in _rows(sequence, camid, out.parent.absolute(), tracks, every)
    ]
    if not rows:
        raise DataError(f"There are no boxes in {', '.join(map(str, sequences))}; give others.")
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return len(rows)


def _rows(
    sequence: Path, camid: int, base: Path, tracks: str | None, every: int
) -> Iterator[tuple[str | float, ...]]:
    about = configparser.ConfigParser()
    about.read(sequence / "seqinfo.ini", encoding="utf-8")
    info = about["Sequence"] if about.has_section("Sequence") else {}
    frames = sequence / info.get("imDir", "img1")
    ending, rate = info.get("imExt", ".jpg"), float(info.get("frameRate", 0))
    folder = os.path.relpath(frames.absolute(), base)
    if folder.startswith(".."):
        raise DataError(f"{frames} isn't in {base}; write the table (--out) above the frames.")
    seen: dict[str, int] = {}
    found: dict[int, str] = {}
    for frame, track, *box in _boxes(_file(sequence, tracks)):
        seen[track] = seen.get(track, 0) + 1
        if (seen[track] - 1) % every:
            continue
        if frame not in found:
            found[frame] = _frame(frames, f"{frame:06d}{ending}")
        x, y, w, h = (round(side) for side in box)
        if min(w, h) >= LEAST_SIDE:
            time = frame / rate if rate else frame
            path = f"{folder}/{found[frame]}"
            yield (path, x - 1, y - 1, w, h, camid, f"{sequence.name}:{track}", time)


def _frame(folder: Path, name: str) -> str:
    if not (folder / name).is_file():
        raise DataError(
            f"There is no frame {folder / name}; give the sequence's frames, named as its "
            "seqinfo.ini says, or img1/000001.jpg and on."
        )
    return name


def _file(sequence: Path, tracks: str | None) -> Path:
    if tracks is None:
        found = [sequence / name for name in TRACKS if (sequence / name).is_file()]
    else:
        found = [
            file
            for file in (sequence / tracks, Path(tracks, f"{sequence.name}.txt"))
            if file.is_file()
        ]
    if not found:
        raise DataError(
            f"{sequence} has no {tracks or ' and no '.join(TRACKS)}; give the file with --tracks "
            "FILE, as it is called in each sequence, or a folder that has SEQUENCE.txt."
        )
    return found[0]


def _boxes(file: Path) -> Iterator[tuple[int, str, float, float, float, float]]:
    """Frame, track and box of each line, by frame."""
    boxes = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            frame, track, x, y, w, h, *rest = (float(field) for field in line.split(","))
            is_box = frame >= 1 and all(map(math.isfinite, (frame, track, x, y, w, h)))
        except ValueError:
            is_box = False
        if not is_box:
            raise DataError(
                f"Line {number} of {file} is no box; write frame,id,x,y,w,h with frames from 1."
            )
        if not rest or rest[0] != 0:
            boxes.append((int(frame), f"{track:g}", x, y, w, h))
    return iter(sorted(boxes, key=lambda box: box[0]))
