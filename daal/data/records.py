"""One row per image: the Arrow tables of a listing, and those that every stage reads.

Known values: `split` is train, query or gallery; `domain` is source or target.
`pid` is -1 for junk boxes and 0 for distractors (Market-1501's convention), or -2
where the identity isn't known. `camid`, `tracklet` and `time` are -1 where they aren't known.
"""

from collections import Counter
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

Split = Literal["train", "query", "gallery"]
Domain = Literal["source", "target"]
SPLITS: tuple[Split, ...] = ("train", "query", "gallery")

JUNK_PID = -1
DISTRACTOR_PID = 0
UNKNOWN_PID = -2
UNKNOWN_CAMID = -1
UNKNOWN = -1  # tracklet or time
BOX = ("x", "y", "w", "h")  # in pixels


def _columns(**kinds: pa.DataType) -> pa.Schema:
    """Columns of a table in which every value is known."""
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


#: What a listing says of an image: tens of bytes beside its path, which is its name in the set,
#: with forward slashes.
RECORDS = pa.schema([
    *_columns(
        path=pa.string(), pid=pa.int32(), camid=pa.int32(), split=pa.string(),
        tracklet=pa.int32(),
        time=pa.int64(),  # milliseconds
        part=pa.int16(),  # number of the set, if several are joined
        offset=pa.int64(),  # of the first byte in a tar; row of a Parquet file; -1: the whole file
        size=pa.int64(),  # bytes from there on; -1: to the end
    ),
    pa.field("file", pa.string()),  # from the set's root, or a URI; null: the path
    *(pa.field(side, pa.int32()) for side in BOX),  # to be cut out; null: the whole image
])  # fmt: skip
NOT_GIVEN = {"pid": UNKNOWN_PID, "split": "train", "part": 0, "file": None, **dict.fromkeys(BOX)}


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


def records_of(paths: Any, **known: Any) -> pa.Table:
    """RECORDS of images with these paths. What is known is a column, or one value for all images;
    what isn't given is unknown."""
    columns = {"path": paths}
    for name, kind in zip(RECORDS.names[1:], RECORDS.types[1:], strict=True):
        value = known.get(name, NOT_GIVEN.get(name, UNKNOWN))
        is_one = value is None or isinstance(value, int | str)
        columns[name] = pa.repeat(pa.scalar(value, kind), len(paths)) if is_one else value
    return pa.table(columns).cast(RECORDS)


def of_split(table: pa.Table, split: Split) -> pa.Table:
    """The rows of a split."""
    return table.filter(pc.equal(table["split"], split))


def counted(column: pa.ChunkedArray) -> Counter[int]:
    """How often each number is there."""
    return Counter({each["values"]: each["counts"] for each in column.value_counts().to_pylist()})


def distinct(column: pa.ChunkedArray) -> set[int]:
    return set(pc.unique(column).to_pylist())
