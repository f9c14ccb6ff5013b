"""A full disk loses nothing that was there."""

import subprocess
from pathlib import Path

import pytest
from tiny_run import silent

from daal import checkpoint
from daal.errors import StorageError
from pipelines.adapt import Adaptation
from pipelines.run.folder import RunFolder
from pipelines.workers.session import ray_session


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MB, which can be made larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "daal-test", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk__keeps_what_was_finished_and_names_the_file(small_disk):
    def stage(folder, name, size):
        folder.once(name, [f"{name}.bin"], lambda: {f"{name}.bin": bytes(size)})

    folder = RunFolder(str(small_disk / "run"))
    stage(folder, "small", 1_000_000)
    with pytest.raises(StorageError, match=r"large\.bin .*: the disk is full.*20,000,000 bytes"):
        stage(folder, "large", 20_000_000)
    assert {file.name for file in (small_disk / "run").iterdir()} == {"journal.jsonl", "small.bin"}
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    again = RunFolder(str(small_disk / "run"))
    stage(again, "large", 20_000_000)
    assert again.read("large.bin") == bytes(20_000_000)
    assert [line["stage"] for line in again.journal()] == ["small", "large"]


@pytest.mark.ray
@pytest.mark.nightly  # unit/test_checkpoint_writer.py has what it does in each worker
def test_a_disk_that_fills_while_training__the_same_run_continues_once_there_is_room(
    ray_cluster, tiny_config, small_disk
):
    config = tiny_config.model_copy(update={"out": str(small_disk / "run")})
    progress = silent()
    with ray_session(config.ray) as resources:
        with pytest.raises(StorageError, match=r"a checkpoint of pretrain.*No space.*same command"):
            Adaptation(config, RunFolder(config.out), resources, progress).pretrain_only()
        journal = RunFolder(config.out).journal()
        assert [line["stage"] for line in journal] == ["ingest/source", "ingest/target"]
        subprocess.run(["mount", "-o", "remount,size=900m", str(small_disk)], check=True)
        Adaptation(config, RunFolder(config.out), resources, progress).pretrain_only()
    assert RunFolder(config.out).journal()[:2] == journal
    checkpoint.load(Path(config.out) / "pretrain/checkpoint")
