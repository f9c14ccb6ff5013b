"""One set as a folder, a table, tar files and in a bucket: the same weights, byte for byte."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from heads import ray_head
from pyarrow import fs
from runs import run_of
from tiny_run import FinishedRun, changed

from benchmarks.s3_server import BUCKET, S3Server
from daal.config import Config
from daal.data.sources import load_set
from pipelines.commands.run import run_adaptation

pytestmark = pytest.mark.ray

COLUMNS = ("path", "split", "pid", "camid")
RESULTS = ("iteration-01/checkpoint/weights.safetensors", "iteration-01/evaluation.json")

Rows = list[dict[str, object]]
Copy = Callable[[Path, Rows, Path], tuple[str, str]]  # layout and root of a copy in a new folder


def csv(root: Path, rows: Rows, into: Path) -> tuple[str, str]:
    shutil.copytree(root, into)
    lines = [",".join(COLUMNS), *(",".join(map(str, row.values())) for row in reversed(rows))]
    (into / "images.csv").write_text("\n".join(lines))
    return "table", f"{into}/images.csv"


def parquet(root: Path, rows: Rows, into: Path) -> tuple[str, str]:
    """The images themselves are in the table."""
    into.mkdir()
    some = [row | {"image": (root / str(row["path"])).read_bytes()} for row in reversed(rows)]
    pq.write_table(pa.Table.from_pylist(some), into / "images.parquet", row_group_size=50)
    return "table", f"{into}/images.parquet"


def tars(root: Path, rows: Rows, into: Path) -> tuple[str, str]:
    into.mkdir()
    for at in range(3):
        with tarfile.open(into / f"{at:03}.tar", "w") as tar:
            for row in rows[at::3]:
                path = str(row["path"])
                label = json.dumps(row).encode()
                member = tarfile.TarInfo(path.replace(".jpg", ".json"))
                member.size = len(label)
                tar.addfile(member, io.BytesIO(label))
                tar.add(root / path, path)
    return "webdataset", str(into)


def bucket(root: Path, rows: Rows, into: Path) -> tuple[str, str]:
    uri = f"s3://{BUCKET}{into}"
    fs.copy_files(str(root), uri)
    return "market1501", uri


def copied(config: Config, copy: Copy, into: Path) -> Config:
    """The same run on copies of both sets."""
    settings = [f"out={into}/run"]
    for domain, given in config.domains():
        rows: Rows = load_set(given).select(COLUMNS).to_pylist()
        into.mkdir(exist_ok=True)
        layout, root = copy(Path(given.root), rows, into / domain)
        settings += [f"{domain}.layout={layout}", f"{domain}.root={root}"]
    return changed(config, *settings)


def results(config: Config) -> list[bytes]:
    return [Path(config.out, name).read_bytes() for name in RESULTS]


def test_a_folder_and_a_table__the_same_weights(adapted: FinishedRun, tmp_path: Path) -> None:
    table = copied(changed(adapted.config, "supervised_bound=false"), parquet, tmp_path / "parquet")
    run_adaptation(table, quiet=True)
    assert results(table) == results(adapted.config)


@pytest.mark.nightly
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_set_from_anywhere__the_same_weights(
    num_workers: int, s3: S3Server, tiny_config: Config, tmp_path: Path
) -> None:
    folder = changed(tiny_config, f"ray.num_workers={num_workers}")
    others = [
        copied(folder, copy, tmp_path / copy.__name__) for copy in (csv, parquet, tars, bucket)
    ]
    with ray_head() as head:
        for config in (folder, *others):
            run_of(config, config.out).finish(head.joined)
    for config in others:
        assert results(config) == results(folder), config.target.root
