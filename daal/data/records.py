"""One row per image: the Arrow tables that every stage reads.

Known values: `split` is train, query or gallery; `domain` is source or target.
`pid` is -1 for junk boxes and 0 for distractors (Market-1501's convention), or -2
where the identity isn't known; `camid` is -1 where the camera isn't.
"""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

Split = Literal["train", "query", "gallery"]
Domain = Literal["source", "target"]
SPLITS: tuple[Split, ...] = ("train", "query", "gallery")

JUNK_PID = -1
DISTRACTOR_PID = 0
UNKNOWN_PID = -2
UNKNOWN_CAMID = -1


@dataclass(frozen=True)
class ImageRecord:
    """Where one image lies and what its name says about it."""

    path: str  # relative to the data set's root, with forward slashes
    pid: int
    camid: int
    split: Split


def _columns(**kinds: pa.DataType) -> pa.Schema:
    """Columns of a table in which every value is known."""
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


# What `pipelines.images.ingest` makes of records: the JPEG bytes travel inside the table.
IMAGE_TABLE = _columns(
    image=pa.large_binary(),
    path=pa.string(),
    pid=pa.int32(),
    camid=pa.int32(),
    split=pa.string(),
    domain=pa.string(),
)

# Images that could not be read, with the reason.
QUARANTINE_TABLE = _columns(path=pa.string(), domain=pa.string(), reason=pa.string())
