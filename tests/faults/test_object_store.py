"""On S3: a run folder, killed, continued, whole; and the images of a run."""

import re
import subprocess
import sys
from pathlib import Path

import bad_input
import numpy as np
import pytest
import safetensors.torch
import yaml
from heads import ray_head, without_ray
from pyarrow import fs
from runs import run_of
from tiny_run import changed

from benchmarks.s3_server import BUCKET, S3Server, s3_server
from daal.config import Config
from daal.data.sources import load_set
from daal.errors import StorageError
from pipelines.images import store as stores
from pipelines.images.ingest import ingest
from pipelines.run.folder import RunFolder

pytestmark = pytest.mark.ray


@pytest.fixture
def bucket(s3: S3Server) -> str:
    return f"s3://{BUCKET}"


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


def test_a_bucket_without_permission__one_sentence_with_the_remedy(
    s3: S3Server, ray_cluster: None, tiny_config: Config, tmp_path: Path
) -> None:
    root = f"s3://{BUCKET}/closed"
    fs.copy_files(tiny_config.target.root, root)
    s3.refuse()
    given = bad_input.case(
        "Buckets", "no permission", lambda: bad_input.market("source"),
        f"{bad_input.VALIDATE} target.root={root}", 3,
    )  # fmt: skip
    outcome = bad_input.run(given, tmp_path)
    bad_input.check(given, outcome)
    assert f"{root} can't be opened" in outcome.err and "that you may read" in outcome.err
    config = changed(tiny_config, f"store=s3://{BUCKET}/closed-store")
    with pytest.raises(StorageError, match=r"closed-store/\w+ can't be read.* another store="):
        ingest(config, "target")


@pytest.mark.nightly
def test_a_node_that_may_not_read_the_bucket__is_named(
    s3: S3Server, tiny_config: Config, tmp_path: Path
) -> None:
    root, environment = f"s3://{BUCKET}/people", without_ray()
    fs.copy_files(tiny_config.target.root, root)
    with s3_server() as closed:
        closed.refuse()
        with ray_head() as head:
            done = subprocess.run(
                [sys.executable, "-m", "daal", "ingest", "demo", f"target.root={root}",
                 "source.root=''", "adapt.batch_source=0", f"out={tmp_path}/run"],
                capture_output=True, text=True,
                env=environment | {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": head.address},
            )  # fmt: skip
    assert done.returncode == 3, done.stderr
    said = rf"error: on node [\d.]+: The data set's root {root} can't be opened"
    assert re.search(said, " ".join(done.stderr.split())), done.stderr
    assert "Traceback" not in done.stderr


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
