"""Killed while images are read into their store: the same command continues, shard by shard."""

import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from heads import processes_of, ray_folder, without_ray
from pyarrow import fs
from waiting import wait_until

from benchmarks.s3_server import BUCKET, S3Server
from daal.config import Config
from daal.data.sources import load_set
from pipelines.images import store as stores

pytestmark = pytest.mark.ray

IMAGES_PER_SHARD = 6
COMMAND = f"""
from pipelines import cli
from pipelines.images import ingest
ingest.IMAGES_PER_SHARD = {IMAGES_PER_SHARD}
cli.main()
"""


def ingest(recipe: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """The command, with shards small enough that a tiny set has many."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "ingest", str(recipe)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def shards(folder: Path) -> dict[str, int]:
    """When each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*/shard-*.arrow")}


def test_killed_between_shards__none_that_was_whole_is_read_again(
    s3: S3Server, tiny_config: Config, tmp_path: Path
) -> None:
    fs.copy_files(tiny_config.target.root, f"s3://{BUCKET}/people")
    recipe, folder = tmp_path / "ingest.yaml", tmp_path / "store"
    settings = tiny_config.model_dump(mode="json")
    settings |= {"store": str(folder), "source": {}, "target": {"root": f"s3://{BUCKET}/people"}}
    settings["adapt"] |= {"batch_source": 0}
    recipe.write_text(yaml.safe_dump(settings))
    paths = load_set(tiny_config.target)["path"].to_pylist()
    with ray_folder() as scratch:
        environment = without_ray() | {"RAY_TMPDIR": scratch, "HOME": scratch}
        environment |= {"RAY_AUTH_MODE": "disabled"}
        process = ingest(recipe, environment)
        wait_until(lambda: len(shards(folder)) >= 3, "no shard is written", pause=0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        wait_until(lambda: not processes_of(scratch), "Ray outlives its driver")
        before, num_requests = shards(folder), len(s3.requests())
        assert 3 <= len(before) < len(paths) // IMAGES_PER_SHARD
        assert not list(folder.glob("*/store.json"))

        process = ingest(recipe, environment)
        wait_until(lambda: len(shards(folder)) > len(before) + 3, "it doesn't continue", 0.002)
        wait_until(lambda: reader(scratch), "no task reads", pause=0.002).kill()
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
    (place,) = folder.iterdir()
    store, bad = stores.opened(str(place)) or pytest.fail("it isn't whole")
    assert not bad and store.ends[-1] == len(paths)
    assert before.items() <= shards(folder).items(), "a whole shard was written again"
    again = Counter(s3.requests()[num_requests:])
    starts = [int(name[6:11]) * IMAGES_PER_SHARD for name in before]
    whole = {path for at in starts for path in paths[at : at + IMAGES_PER_SHARD]}
    read = {path for path in paths if again[f"{BUCKET}/people/{path}"]}
    assert read == set(paths) - whole, "what was whole is read again, or the server's log is odd"


def reader(scratch: str) -> psutil.Process | None:
    """A process of Ray that has a shard at work."""
    for pid in processes_of(scratch):
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.cmdline()[0].startswith("ray::Map(_make_shard)"):
                return process
    return None
