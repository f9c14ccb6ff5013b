"""On S3: a run folder, killed, continued, whole; and the images of a run."""

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import yaml
from heads import free_port, without_ray
from pyarrow import fs
from runs import run_of
from waiting import wait_until

from daal.config import Config
from daal.data.sources import load_set
from pipelines.images import store as stores
from pipelines.run.folder import RunFolder

pytestmark = pytest.mark.ray


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of an empty bucket on a server of our own, and the way there in the environment."""
    # `make test` puts it beside our own programs; see s3_server.txt.
    program = shutil.which("moto_server", path=f"{sys.prefix}/s3/bin:{os.environ['PATH']}")
    if program is None:
        pytest.skip("moto_server is not installed (pip install -r tests/faults/s3_server.txt)")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [program, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for name, value in {
        "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    try:
        wait_until(lambda: _makes_bucket(server, address), "the S3 server doesn't start")
        yield "s3://bucket"
    finally:
        server.kill()
        server.wait()


def _makes_bucket(server: subprocess.Popen[bytes], address: str) -> bool:
    assert server.poll() is None, f"the S3 server has ended with exit code {server.returncode}"
    with suppress(OSError):
        urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT")).close()
        return True
    return False


def test_a_stage_on_s3__is_whole_or_made_again(bucket: str) -> None:
    content = {"stage/a.json": b"[1]", "stage/b.bin": bytes(3_000_000)}
    made = 0

    def make() -> dict[str, bytes]:
        nonlocal made
        made += 1
        return content

    def stage() -> dict[str, bytes]:
        return RunFolder(f"{bucket}/runs/one").once("stage", sorted(content), make)

    assert stage() == stage() == content and made == 1
    run = RunFolder(f"{bucket}/runs/one")
    for damage in (b"", b"[2]", b"[1]\n"):
        run.write("stage/a.json", damage)
        assert stage() == content
    assert made == 4 and len(run.journal()) == 4
    for number in range(60):
        run.append("metrics.jsonl", {"number": number, "pad": "x" * 500})
    lines = RunFolder(f"{bucket}/runs/one").lines("metrics.jsonl")
    assert [line["number"] for line in lines] == list(range(60))
    assert run.exists("metrics.jsonl") and run.exists("metrics.000002.jsonl")


def test_images_on_s3__are_those_of_the_folder(
    bucket: str, tiny_config: Config, tmp_path: Path
) -> None:
    fs.copy_files(tiny_config.target.root, f"{bucket}/people")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_config.model_dump(mode="json")))

    def read(root: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "daal", "ingest", str(recipe), f"target.root={root}",
             "source.root=''", "adapt.batch_source=0", f"store={bucket}/images"],
            capture_output=True, text=True, env=without_ray() | {"RAY_AUTH_MODE": "disabled"},
        )  # fmt: skip

    done = read(f"{bucket}/people")
    assert done.returncode == 0, done.stderr
    system, base = fs.FileSystem.from_uri(f"{bucket}/images")
    (folder,) = system.get_file_info(fs.FileSelector(base))
    store, bad = stores.opened(f"s3://{folder.path}") or pytest.fail("it isn't whole")
    paths = load_set(tiny_config.target)["path"].to_pylist()
    images = [data.to_pybytes() for data in store.take(np.arange(len(paths)))]
    assert images == [Path(tiny_config.target.root, path).read_bytes() for path in paths]
    assert not bad
    nowhere = read("s3://nowhere/people")
    assert nowhere.returncode == 3 and "s3://nowhere/people" in nowhere.stderr
    assert len(nowhere.stderr.splitlines()) == 1


@pytest.mark.nightly
def test_a_run_on_s3__killed_while_training_and_continued(bucket: str, tiny_config: Config) -> None:
    environment = without_ray()
    run = run_of(tiny_config, f"{bucket}/runs/tiny")
    process = run.start(environment)
    run.wait_for("iteration-01/train", process)
    process.kill()
    process.communicate()
    run.finish(environment)
    stages = run.stages()
    assert len(stages) == len(set(stages)) and "iteration-01/evaluate" in stages
    assert run.folder.exists("summary.json")
    weights = run.folder.read("iteration-01/checkpoint/weights.safetensors")
    assert safetensors.torch.load(weights)["target_head.fc.weight"].isfinite().all()
    assert b"secret" not in run.folder.read("config.yaml")
