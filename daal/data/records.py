"""One row per image: the records of a listing, and the Arrow tables that every stage reads.

Known values: `split` is train, query or gallery; `domain` is source or target.
`pid` is -1 for junk boxes and 0 for distractors (Market-1501's convention), or -2
where the identity isn't known. `camid`, `tracklet` and `time` are -1 where they aren't known.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import pyarrow as pa

Split = Literal["train", "query", "gallery"]
Domain = Literal["source", "target"]
SPLITS: tuple[Split, ...] = ("train", "query", "gallery")

JUNK_PID = -1
DISTRACTOR_PID = 0
UNKNOWN_PID = -2
UNKNOWN_CAMID = -1
UNKNOWN = -1  # tracklet or time


class Where(NamedTuple):
    """Where an image's bytes are, if they are no file of the image's own path."""

    file: str  # from the set's root, or a URI
    offset: int = -1  # of the first byte in a tar; row of a Parquet file; -1: the whole file
    size: int = -1  # bytes from there on
    box: tuple[int, int, int, int] | None = None  # x, y, width, height in pixels, to be cut out


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """Where one image lies and what is known of it."""

    path: str  # its name in the set, with forward slashes; for most, the file under the root
    pid: int
    camid: int
    split: Split
    tracklet: int = UNKNOWN
    time: int = UNKNOWN  # milliseconds
    where: Where | None = None
    part: int = 0  # number of the set, if several are joined


def _columns(**kinds: pa.DataType) -> pa.Schema:
    """Columns of a table in which every value is known."""
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


# What a run keeps of a set's images: all but the images, which are in the store.
IMAGE_TABLE = _columns(
    path=pa.string(),
    pid=pa.int32(),
    camid=pa.int32(),
    split=pa.string(),
    domain=pa.string(),
    tracklet=pa.int32(),
    time=pa.int64(),
    size=pa.int64(),
)

# Images that could not be read, with the reason.
QUARANTINE_TABLE = _columns(path=pa.string(), domain=pa.string(), reason=pa.string())
