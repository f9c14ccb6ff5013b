"""Features files that `daal label` and `daal evaluate` are given."""

import os
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bad_input import PICTURE, Case, write
from numpy.typing import NDArray

FEATURES = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
PIDS = np.arange(40) % 5 + 1
CAMIDS = np.arange(40) % 2
SPLITS = np.where(np.arange(40) < 10, "query", "gallery")

Table = dict[str, Any]


def columns(**changed: Any) -> Table:
    """A features file's columns in order but for some; None takes one away."""
    table = {
        "path": [f"{n}.jpg" for n in range(40)],
        "pid": PIDS,
        "camid": CAMIDS,
        "split": SPLITS,
        "feature": FEATURES.tolist(),
    } | changed
    return {name: column for name, column in table.items() if column is not None}


def parquet(table: Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(table), sink)
    return sink.getvalue().to_pybytes()


def npy(array: NDArray[Any]) -> bytes:
    np.save("x.npy", array, allow_pickle=True)
    data = Path("x.npy").read_bytes()
    os.remove("x.npy")
    return data


def header(shape: str, descr: str = "'<f4'") -> bytes:
    """An .npy file that says this of itself, and has 80 bytes of data."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(80)


def case(
    command: str,
    name: str,
    file: str,
    data: bytes | Callable[[], bytes],
    *says: str,
    code: int = 3,
    settings: tuple[str, ...] = (),
) -> Case:
    def make() -> list[str]:
        write(file, data if isinstance(data, bytes) else data())
        return [command, file, *settings]

    return Case("Features", f"{command}: {name}", make, code, (file, *says))


NO_FEATURES = "is not a features file: "
WITH_NAN = FEATURES.copy()
WITH_NAN[7, 3] = np.nan

ARRAYS: list[tuple[str, bytes | Callable[[], bytes], str]] = [
    ("empty file", b"", "it holds no whole array of numbers"),
    ("text", b"1.0 2.0\n", "it holds no whole array of numbers"),
    ("an image", PICTURE, "it holds no whole array of numbers"),
    ("a pickle", pickle.dumps(FEATURES), "it holds no whole array of numbers"),
    ("pickled objects", partial(npy, np.array([{}, {}], object)), "it holds no whole array"),
    ("a pickle that makes a folder", header("(1, 1)", "'|O'") + b"cos\nmkdir\n(S'made'\ntR.",
     "it holds no whole array of numbers"),
    ("one dimension", partial(npy, np.ones(5)), "it holds float64 of shape (5,)"),
    ("three dimensions", partial(npy, np.ones((2, 2, 2))), "of shape (2, 2, 2)"),
    ("no dimension", partial(npy, np.float32(1)), "of shape ()"),
    ("no rows", partial(npy, np.ones((0, 8))), "its features are of shape (0, 8)"),
    ("no columns", partial(npy, np.ones((8, 0))), "its features are of shape (8, 0)"),
    ("words", partial(npy, np.array([["a"]])), "it holds <U1"),
    ("complex numbers", partial(npy, np.ones((3, 3), complex)), "it holds complex128"),
    ("truth values", partial(npy, np.ones((3, 3), bool)), "it holds bool"),
    ("dates", partial(npy, np.zeros((3, 3), "M8[s]")), "it holds datetime64"),
    ("records", partial(npy, np.zeros((3, 3), [("a", "f4")])), "it holds [('a', '<f4')]"),
    ("a header that claims a petabyte", header("(1000000000000, 256)"), "no whole array"),
    ("a header with a negative shape", header("(-1, 4)"), "no whole array"),
    ("a header that is code", header("__import__('os').mkdir('made')"), "no whole array"),
    ("a header of no type", header("(2, 2)", "'nonsense'"), "no whole array"),
    ("version 9", b"\x93NUMPY\x09\x00" + bytes(100), "it holds no whole array of numbers"),
]  # fmt: skip

# For both commands alike.
TABLES: list[tuple[str, bytes | Callable[[], bytes], str]] = [
    ("empty file", b"", "it is no whole Parquet file"),
    ("text", b"feature\n1.0\n", "it is no whole Parquet file"),
    ("an image", PICTURE, "it is no whole Parquet file"),
    ("a pickle", pickle.dumps(FEATURES), "it is no whole Parquet file"),
    ("only the magic bytes", b"PAR1PAR1", "it is no whole Parquet file"),
    ("a footer longer than the file", b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1", "no whole Parquet"),
    ("no column feature", partial(parquet, columns(feature=None)),
     """it has no column "feature"; it has 'path', 'pid', 'camid', 'split'"""),
    ("features under another name",
     partial(parquet, columns(feature=None, features=FEATURES.tolist())),
     "it has 'path', 'pid', 'camid', 'split', 'features'"),
    ("no rows", partial(parquet, {"feature": pa.array([], pa.list_(pa.float32()))}), "has no rows"),
    ("words", partial(parquet, columns(feature=["a"] * 40)), "is string, not a list of numbers"),
    ("numbers, not lists", partial(parquet, columns(feature=[1.0] * 40)),
     "is double, not a list of numbers"),
    ("lists of words", partial(parquet, columns(feature=[["a"]] * 40)), "not a list of numbers"),
    ("lists of lists", partial(parquet, columns(feature=[[[1.0]]] * 40)), "not a list of numbers"),
    ("lists of truth values", partial(parquet, columns(feature=[[True]] * 40)),
     "not a list of numbers"),
    ("maps", partial(parquet, columns(feature=[{"a": 1.0}] * 40)), "not a list of numbers"),
    ("ragged", partial(parquet, columns(feature=[[1.0]] * 39 + [[1.0, 2.0]])),
     "its features differ in length"),
    ("a feature missing", partial(parquet, columns(feature=[[1.0, 2.0]] * 39 + [None])),
     "or some are missing"),
    ("no feature there", partial(parquet, columns(feature=pa.nulls(40, pa.list_(pa.float32())))),
     "or some are missing"),
    ("lists of nothing", partial(parquet, columns(feature=pa.array([[]] * 40,
     pa.list_(pa.float32())))), "its features are of shape (40, 0)"),
]  # fmt: skip

# Of columns without which nothing can be scored; label leaves them out, or takes them for unknown.
NEEDED: list[tuple[str, bytes | Callable[[], bytes], str]] = [
    ("pids that are words", partial(parquet, columns(pid=["seven"] * 40)),
     'its column "pid" is string, not integers'),
    ("pids that are fractions", partial(parquet, columns(pid=PIDS + 0.5)),
     'its column "pid" is double, not integers'),
    ("a pid missing", partial(parquet, columns(pid=[None, *PIDS[1:].tolist()])),
     'its column "pid" lacks 1 of 40'),
    ("pids beyond 64 bits", partial(parquet, columns(pid=np.full(40, 2**64 - 1, np.uint64))),
     'its column "pid" has numbers beyond 64 bits'),
    ("camids that are words", partial(parquet, columns(camid=["c1"] * 40)),
     'its column "camid" is string, not integers'),
    ("a camid missing", partial(parquet, columns(camid=[None, *CAMIDS[1:].tolist()])),
     'its column "camid" lacks 1 of 40'),
    ("splits that are numbers", partial(parquet, columns(split=PIDS)),
     'its column "split" is int64, not words'),
    ("a split missing", partial(parquet, columns(split=[None, *SPLITS[1:].tolist()])),
     'its column "split" lacks 1 of 40'),
]  # fmt: skip


def truncated() -> list[Case]:
    whole = parquet(columns())
    rng = np.random.default_rng(0)
    cases = [
        case(command, f"Parquet cut off at {share:.1%}", "features.parquet",
             whole[: int(share * len(whole))], NO_FEATURES, "it is no whole Parquet file")
        for command in ("label", "evaluate")
        for share in [*sorted(rng.uniform(0.01, 0.98, 4)), 0.999]
    ]  # fmt: skip
    array = header("(5, 4)")
    return cases + [
        case("label", f"array cut off at byte {at}", "features.npy", array[:at], NO_FEATURES,
             "it holds no whole array of numbers")
        for at in (3, 9, 60, 130, len(array) - 1)
    ]  # fmt: skip


def no_files() -> list[Case]:
    def make(command: str, file: str, prepare: Callable[[], object]) -> list[str]:
        prepare()
        return [command, file]

    cases = []
    for command in ("label", "evaluate"):
        for name, file, prepare, reason in (
            ("absent", "gone.parquet", lambda: None, "it doesn't exist"),
            ("folder", "x.parquet", lambda: os.mkdir("x.parquet"), "it is no file"),
            (
                "folder of Parquet files",
                "x",
                lambda: write("x/1.parquet", parquet(columns())),
                "it is no file",
            ),
            ("pipe", "x.npy", lambda: os.mkfifo("x.npy"), "it is no file"),
            (
                "archive",
                "x.npz",
                lambda: np.savez("x.npz", FEATURES),
                "it is an archive of arrays, of which numpy.save",
            ),
            ("name with a newline", "a\nb.parquet", lambda: None, "it doesn't exist"),
        ):
            run = partial(make, command, file, prepare)
            says = (file.replace("\n", "\\n"), NO_FEATURES, reason)
            cases.append(Case("Features", f"{command}: {name}", run, 3, says))
    return cases


def archive() -> bytes:
    with zipfile.ZipFile("x.zip", "w") as file:
        file.writestr("features.npy", b"")
    data = Path("x.zip").read_bytes()
    os.remove("x.zip")
    return data


def labelling() -> list[Case]:
    good = partial(npy, FEATURES)
    one = partial(case, "label")
    return [
        one("five rows alike", "features.npy", partial(npy, FEATURES[:1] + 0.01 * FEATURES[:5]),
            "5 samples have the same neighbours", "cluster.k1", code=7),
        one("identical rows", "features.npy", partial(npy, np.ones((40, 8), np.float32)),
            "All 40 features are identical", code=7),
        one("a camid missing, and needed", "features.parquet",
            partial(parquet, columns(camid=[None, *CAMIDS[1:].tolist()])),
            'its column "camid" lacks 1 of 40', settings=("cluster.camera_norm=true",)),
        one("camids that are words, and needed", "features.parquet",
            partial(parquet, columns(camid=["c1"] * 40)),
            'its column "camid" is string, not integers', settings=("cluster.camera_norm=true",)),
        *(one(f"a file {suffix}", f"x{suffix}", b"1,2", f"x{suffix}'", "makes one")
          for suffix in (".pt", ".csv", ".safetensors")),
        one("zip named .npy", "features.npy", archive, "no whole array of numbers"),
        one("all NaN", "features.npy", partial(npy, FEATURES * np.nan),
            "40 of 40 features are not finite or zero", code=7),
        one("all infinite", "features.npy", partial(npy, np.full((40, 8), np.inf, np.float32)),
            "40 of 40 features are not finite or zero", code=7),
        one("beyond float32", "features.npy", partial(npy, np.full((40, 8), 1e300)),
            "40 of 40 features are not finite or zero", code=7),
        one("all zero", "features.npy", partial(npy, np.zeros((40, 8), np.float32)),
            "40 of 40 features are not finite or zero", code=7),
        one("a NaN in 40 rows", "features.npy", partial(npy, WITH_NAN),
            "1 of 40 features are not finite", code=7),
        one("a number missing in a list", "features.parquet",
            partial(parquet, columns(feature=[[1.0, None]] * 40)), "40 of 40 features", code=7),
        one("one row", "features.npy", partial(npy, FEATURES[:1]),
            "Pseudo-labels need at least 2 images, not 1", code=7),
        one("a split that isn't there", "features.parquet", partial(parquet, columns()),
            "it has no rows of split train", settings=("--split", "train")),
        one("a split of a file without", "features.parquet", partial(parquet, columns(split=None)),
            'it has no column "split"', settings=("--split", "train")),
        one("a split of an array", "features.npy", good, "it is an array and has no splits",
            settings=("--split", "train")),
    ]  # fmt: skip


def refused_settings() -> list[Case]:
    """Good features, and what is wanted of them is wrong."""

    def one(name: str, settings: list[str], *says: str) -> Case:
        def make() -> list[str]:
            write("features.npy", npy(FEATURES))
            return ["label", "features.npy", *settings]

        return Case("Features", f"label: {name}", make, 2, says)

    return [
        one("cameras that the file hasn't", ["cluster.camera_aware=true"],
            "cluster.camera_aware=true needs the camera of every image"),
        one("cameras' means without cameras", ["cluster.camera_norm=true"],
            "cluster.camera_norm=true needs the camera of every image"),
        one("a source term without a source", ["cluster.source_weight=0.1"],
            "cluster.source_weight above 0 needs the distance"),
        one("two rules for eps", ["cluster.p=1e-3", "cluster.eps=0.5"],
            "cluster.p and cluster.eps belong to different rules"),
        one("a value that the rule for eps doesn't use", ["cluster.p=1e-3", "cluster.eps=0.6"],
            "cluster.p and cluster.eps are different rules for eps"),
        one("unknown key", ["cluster.k9=3"], '"cluster.k9" is not a known key'),
        one("no folder to write to", ["--out", "no/labels.parquet"], "there is no folder no"),
        one("a folder in place of the labels", ["--out", "."], "that is a folder"),
    ]  # fmt: skip


def evaluation() -> list[Case]:
    def one(name: str, says: str, **changed: Any) -> Case:
        data = partial(parquet, columns(**changed))
        return case("evaluate", name, "features.parquet", data, says)

    gallery = np.full(40, "gallery")
    return [
        one("no splits", "can't be scored without split", split=None),
        one("no pids", "can't be scored without pid", pid=None),
        one("no camids", "can't be scored without camid", camid=None),
        one("features alone", "can't be scored without split, pid, camid",
            path=None, split=None, pid=None, camid=None),
        one("no query", "has no query rows", split=gallery),
        one("no gallery", "has no gallery rows", split=np.full(40, "query")),
        one("splits by other names", "has no query rows", split=np.full(40, "test")),
        one("one camera", "no query with an image of the same pid and another camera",
            camid=np.ones(40, int)),
        one("pids all unknown", "no query with an image of the same pid", pid=np.full(40, -2)),
        one("other people in the gallery", "no query with an image of the same pid",
            pid=np.where(SPLITS == "query", 1, 2)),
        one("a NaN", "row 7 of the query features holds a value that isn't finite",
            feature=WITH_NAN.tolist()),
        one("an infinity", "row 0 of the gallery features holds a value that isn't finite",
            feature=np.where(np.arange(40)[:, None] == 10, np.inf, FEATURES).tolist()),
        one("a number missing in a list", "row 0 of the query features holds a value that isn't",
            feature=[[1.0, None]] * 40),
        case("evaluate", "an array", "features.npy", partial(npy, FEATURES),
             "can't be scored without split, pid, camid"),
    ]  # fmt: skip


CASES = [
    *(case("label", f"array: {name}", "x.npy", data, NO_FEATURES, why)
      for name, data, why in ARRAYS),
    *(case(command, name, "features.parquet", data, NO_FEATURES, why)
      for command in ("label", "evaluate") for name, data, why in TABLES),
    *(case("evaluate", name, "features.parquet", data, NO_FEATURES, why)
      for name, data, why in NEEDED),
    *truncated(),
    *no_files(),
    *labelling(),
    *refused_settings(),
    *evaluation(),
]  # fmt: skip
