"""A run folder on S3: killed, continued, whole."""

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress

import pytest
import safetensors.torch
from heads import free_port, without_ray
from runs import run_of
from waiting import wait_until

from daal.config import Config
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
