"""Features files that `daal label` and `daal evaluate` are given."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bad_input import Case, write
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


def truncated() -> list[Case]:
    whole = parquet(columns())
    cases = [
        case(command, f"Parquet cut off at {share:.1%}", "features.parquet",
             whole[: int(share * len(whole))], NO_FEATURES, "it is no whole Parquet file")
        for command in ("label", "evaluate")
        for share in (0.3, 0.999)
    ]  # fmt: skip
    array = header("(5, 4)")
    return cases + [
        case("label", f"array cut off at byte {at}", "features.npy", array[:at], NO_FEATURES,
             "it holds no whole array of numbers")
        for at in (9, 60, len(array) - 1)
    ]  # fmt: skip


def no_files() -> list[Case]:
    def one(command: str, name: str, file: str, prepare: Callable[[], object], why: str) -> Case:
        def make() -> list[str]:
            prepare()
            return [command, file]

        says = (file.replace("\n", "\\n"), NO_FEATURES, why)
        return Case("Features", f"{command}: {name}", make, 3, says)

    return [
        one("label", "absent", "gone.parquet", lambda: None, "it doesn't exist"),
        one("evaluate", "name with a newline", "a\nb.parquet", lambda: None, "it doesn't exist"),
        one("label", "folder", "x.parquet", lambda: os.mkdir("x.parquet"), "it is no file"),
        one("evaluate", "pipe", "x.npy", lambda: os.mkfifo("x.npy"), "it is no file"),
    ]  # fmt: skip


def labelling() -> list[Case]:
    one = partial(case, "label")
    return [
        one("five rows alike", "features.npy", partial(npy, FEATURES[:1] + 0.01 * FEATURES[:5]),
            "5 samples have the same neighbours", "cluster.k1", code=7),
        one("identical rows", "features.npy", partial(npy, np.ones((40, 8), np.float32)),
            "All 40 features are identical", code=7),
        one("a camid missing, and needed", "features.parquet",
            partial(parquet, columns(camid=[None, *CAMIDS[1:].tolist()])),
            'its column "camid" lacks 1 of 40', settings=("cluster.camera_norm=true",)),
        one("a file .pt", "x.pt", b"1,2", NO_FEATURES, "numpy.save makes an .npy file"),
        one("all NaN", "features.npy", partial(npy, FEATURES * np.nan),
            "40 of 40 features are not finite or zero", code=7),
        one("a number missing in a list", "features.parquet",
            partial(parquet, columns(feature=[[1.0, None]] * 40)), "40 of 40 features", code=7),
        one("one row", "features.npy", partial(npy, FEATURES[:1]),
            "Pseudo-labels need at least 2 images, not 1", code=7),
        one("a split that isn't there", "features.parquet", partial(parquet, columns()),
            "it has no rows of split train", settings=("--split", "train")),
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
        one("a source term without a source", ["cluster.source_weight=0.1"],
            "cluster.source_weight above 0 needs the distance"),
        one("a value that the rule for eps doesn't use", ["cluster.p=1e-3", "cluster.eps=0.6"],
            "cluster.p and cluster.eps are different rules for eps"),
        one("no folder to write to", ["--out", "no/labels.parquet"], "there is no folder no"),
    ]  # fmt: skip


def evaluation() -> list[Case]:
    def one(name: str, says: str, **changed: Any) -> Case:
        data = partial(parquet, columns(**changed))
        return case("evaluate", name, "features.parquet", data, says)

    gallery = np.full(40, "gallery")
    return [
        one("no splits", "can't be scored without split", split=None),
        one("no query", "has no query rows", split=gallery),
        one("no gallery", "has no gallery rows", split=np.full(40, "query")),
        one("one camera", "no query with an image of the same pid and another camera",
            camid=np.ones(40, int)),
        one("other people in the gallery", "no query with an image of the same pid",
            pid=np.where(SPLITS == "query", 1, 2)),
        one("a NaN", "row 7 of the query features holds a value that isn't finite",
            feature=WITH_NAN.tolist()),
        case("evaluate", "an array", "features.npy", partial(npy, FEATURES),
             "can't be scored without split, pid, camid"),
    ]  # fmt: skip


CASES = [
    *truncated(),
    *no_files(),
    *labelling(),
    *refused_settings(),
    *evaluation(),
]  # fmt: skip
