"""Features files that `daal label` and `daal evaluate` are given."""

import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bad_input import Case, case, write
from numpy.typing import NDArray

FEATURES = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
PIDS = np.arange(40) % 5 + 1
CAMIDS = np.arange(40) % 2
SPLITS = np.where(np.arange(40) < 10, "query", "gallery")
WITH_NAN = FEATURES.copy()
WITH_NAN[7, 3] = np.nan


def parquet(**changed: Any) -> bytes:
    """A features file whose columns are in order but for some; None takes one away."""
    columns = {
        "path": [f"{n}.jpg" for n in range(40)],
        "pid": PIDS,
        "camid": CAMIDS,
        "split": SPLITS,
        "feature": FEATURES.tolist(),
    } | changed
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({n: column for n, column in columns.items() if column is not None}),
                   sink)  # fmt: skip
    return sink.getvalue().to_pybytes()


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# An .npy file that claims a petabyte, and has 80 bytes of data.
HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 256), }".ljust(117)
PETABYTE = b"\x93NUMPY\x01\x00" + bytes([118, 0]) + HEADER.encode() + b"\n" + bytes(80)

GOOD = parquet()

# command (the file's name is added), name, bytes, exit code, what must be said
FILES: list[tuple[str, str, bytes, int, str]] = [
    ("label", "Parquet cut off", GOOD[:-1], 3, "it is no whole Parquet file"),
    ("evaluate", "Parquet cut off", GOOD[: len(GOOD) // 3], 3, "it is no whole Parquet file"),
    ("label", "no column feature", parquet(feature=None), 3,
     """it has no column "feature"; it has 'path', 'pid', 'camid', 'split'"""),
    ("label", "words for features", parquet(feature=["a"] * 40), 3,
     "is string, not a list of numbers"),
    ("label", "features of two lengths", parquet(feature=[[1.0]] * 39 + [[1.0, 2.0]]), 3,
     "its features differ in length"),
    ("label", "a feature missing", parquet(feature=[[1.0, 2.0]] * 39 + [None]), 3,
     "or some are missing"),
    ("label", "a number missing in a list", parquet(feature=[[1.0, None]] * 40), 7,
     "40 of 40 features are not finite or zero"),
    ("label cluster.camera_norm=true", "a camid missing, and needed",
     parquet(camid=[None, *CAMIDS[1:].tolist()]), 3, 'its column "camid" lacks 1 of 40'),
    ("label --split train", "a split that isn't there", GOOD, 3, "it has no rows of split train"),
    ("evaluate", "no splits", parquet(split=None), 3, "can't be scored without split"),
    ("evaluate", "splits that are numbers", parquet(split=PIDS), 3,
     'its column "split" is int64, not words'),
    ("evaluate", "pids that are words", parquet(pid=["seven"] * 40), 3,
     'its column "pid" is string, not integers'),
    ("evaluate", "no query", parquet(split=np.full(40, "gallery")), 3, "has no query rows"),
    ("evaluate", "other people in the gallery", parquet(pid=np.where(SPLITS == "query", 1, 2)), 3,
     "no query with an image of the same pid and another camera"),
    ("evaluate", "a NaN", parquet(feature=WITH_NAN.tolist()), 3,
     "row 7 of the query features holds a value that isn't finite"),
]  # fmt: skip
ARRAYS: list[tuple[str, str, bytes, int, str]] = [
    ("label", "array cut off", npy(FEATURES)[:-1], 3, "it holds no whole array of numbers"),
    ("label", "array that claims a petabyte", PETABYTE, 3, "it holds no whole array of numbers"),
    ("label", "array of one dimension", npy(np.ones(5)), 3, "it holds float64 of shape (5,)"),
    ("label", "array of no rows", npy(np.ones((0, 8))), 3, "its features are of shape (0, 8)"),
    ("label", "five rows alike", npy(FEATURES[:1] + 0.01 * FEATURES[:5]), 7,
     "5 samples have the same neighbours"),
    ("label", "identical rows", npy(np.ones((40, 8), np.float32)), 7,
     "All 40 features are identical"),
    ("label", "one row", npy(FEATURES[:1]), 7, "Pseudo-labels need at least 2 images, not 1"),
    ("label cluster.camera_aware=true", "cameras that the file hasn't", npy(FEATURES), 2,
     "cluster.camera_aware=true needs the camera of every image"),
    ("label cluster.source_weight=0.1", "a source term without a source", npy(FEATURES), 2,
     "cluster.source_weight above 0 needs the distance"),
    ("label --out no/labels.parquet", "no folder to write to", npy(FEATURES), 2,
     "there is no folder no"),
]  # fmt: skip

# command, name, what makes the file, what must be said
NO_FILES: list[tuple[str, str, Callable[[], object], str]] = [
    ("evaluate 'a\nb.parquet'", "absent, with a newline in its name", lambda: None,
     "a\\nb.parquet is not a features file: it doesn't exist"),
    ("evaluate x.npy", "pipe", lambda: os.mkfifo("x.npy"), "it is no file"),
    ("label x.npz", "archive", lambda: np.savez("x.npz", FEATURES),
     "it is an archive of arrays, of which numpy.save"),
    ("label x.pt", "torch file", lambda: write("x.pt"), "it is a torch file, of which numpy.save"),
]  # fmt: skip


def one(file: str, command: str, name: str, data: bytes, code: int, says: str) -> Case:
    verb, *settings = command.split(" ", 1)
    whole = " ".join([verb, file, *settings])
    return case("Features", f"{verb}: {name}", lambda: write(file, data), whole, code, says)


CASES = [
    *(one("features.parquet", *row) for row in FILES),
    *(one("features.npy", *row) for row in ARRAYS),
    *(case("Features", f"{command.split()[0]}: {name}", make, command, 3, says)
      for command, name, make, says in NO_FILES),
]  # fmt: skip
