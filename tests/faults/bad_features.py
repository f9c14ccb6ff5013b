"""Features files that `daal label` and `daal evaluate` are given."""

import io
import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bad_input import case, nothing, write
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
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# An .npy file that claims a petabyte, and has 80 bytes of data.
HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 256), }".ljust(117)
PETABYTE = b"\x93NUMPY\x01\x00" + bytes([118, 0]) + HEADER.encode() + b"\n" + bytes(80)

GOOD = parquet()

FILES: list[tuple[str, str, bytes, int]] = [
    # name, command, content of the file that it names, exit code
    ("Parquet cut off", "label f.parquet", GOOD[:-1], 3),
    ("Parquet cut off", "evaluate f.parquet", GOOD[: len(GOOD) // 3], 3),
    ("no column feature", "label f.parquet", parquet(feature=None), 3),
    ("words for features", "label f.parquet", parquet(feature=["a"] * 40), 3),
    ("features of two lengths", "label f.parquet", parquet(feature=[[1.0]] * 39 + [[1.0, 2.0]]), 3),
    ("a feature missing", "label f.parquet", parquet(feature=[[1.0, 2.0]] * 39 + [None]), 3),
    ("a number missing in a list", "label f.parquet", parquet(feature=[[1.0, None]] * 40), 7),
    ("a camid missing, and needed", "label f.parquet cluster.camera_norm=true",
     parquet(camid=[None, *CAMIDS[1:].tolist()]), 3),
    ("a split that isn't there", "label f.parquet --split train", GOOD, 3),
    ("no splits", "evaluate f.parquet", parquet(split=None), 3),
    ("splits that are numbers", "evaluate f.parquet", parquet(split=PIDS), 3),
    ("pids that are words", "evaluate f.parquet", parquet(pid=["seven"] * 40), 3),
    ("no query", "evaluate f.parquet", parquet(split=np.full(40, "gallery")), 3),
    ("other people in the gallery", "evaluate f.parquet",
     parquet(pid=np.where(SPLITS == "query", 1, 2)), 3),
    ("a NaN", "evaluate f.parquet", parquet(feature=WITH_NAN.tolist()), 3),
    ("array cut off", "label f.npy", npy(FEATURES)[:-1], 3),
    ("array that claims a petabyte", "label f.npy", PETABYTE, 3),
    ("array of one dimension", "label f.npy", npy(np.ones(5)), 3),
    ("array of no rows", "label f.npy", npy(np.ones((0, 8))), 3),
    ("five rows alike", "label f.npy", npy(FEATURES[:1] + 0.01 * FEATURES[:5]), 7),
    ("identical rows", "label f.npy", npy(np.ones((40, 8), np.float32)), 7),
    ("one row", "label f.npy", npy(FEATURES[:1]), 7),
    ("cameras that the file hasn't", "label f.npy cluster.camera_aware=true", npy(FEATURES), 2),
    ("a source term without a source", "label f.npy cluster.source_weight=0.1", npy(FEATURES), 2),
    ("no folder to write to", "label f.npy --out no/labels.parquet", npy(FEATURES), 2),
    ("torch file", "label f.pt", b"", 3),
]  # fmt: skip

CASES = [
    *(case("Features", f"{command.split()[0]}: {name}",
           lambda command=command, data=data: write(command.split()[1], data), command, code)
      for name, command, data, code in FILES),
    case("Features", "evaluate: absent, with a newline in its name", nothing,
         "evaluate 'a\nb.parquet'", 3),
    case("Features", "evaluate: pipe", lambda: os.mkfifo("x.npy"), "evaluate x.npy", 3),
    case("Features", "label: archive", lambda: np.savez("x.npz", FEATURES), "label x.npz", 3),
]  # fmt: skip
