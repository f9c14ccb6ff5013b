"""Checkpoints of a training: what is in them, when errors are told, which one it resumes from."""

import errno
import shutil
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import torch

from daal import checkpoint
from daal.errors import StorageError
from pipelines.training.checkpoint_writer import CheckpointWriter
from pipelines.training.train_state import _last_checkpoint


@dataclass
class RayTrain:
    """As much of Ray Train as a writer sees: one thread that stores what is reported."""

    folder: Path
    goes_on: threading.Event = field(default_factory=threading.Event)
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    reports: list[Future[Any]] = field(default_factory=list)
    error: OSError | None = None

    def report(self, metrics, **given):
        assert given["checkpoint_upload_mode"] is ray.train.CheckpointUploadMode.ASYNC
        assert given["delete_local_checkpoint_after_upload"] is False
        if "checkpoint" in given:
            name = f"checkpoint-{metrics['next_step']}"
            write = given["checkpoint_upload_fn"]
            self.reports.append(self.thread.submit(write, given["checkpoint"], name))

    def persist_current_checkpoint(self, local, name):
        assert self.goes_on.wait(10)
        if self.error:
            raise self.error
        shutil.copytree(local.path, self.folder / name)
        return name


@pytest.fixture
def ray_train(tmp_path, monkeypatch):
    found = RayTrain(tmp_path)
    monkeypatch.setattr(ray.train, "report", found.report)
    context = SimpleNamespace(get_storage=lambda: found)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    yield found
    found.goes_on.set()
    found.thread.shutdown()


def writer(rank=0):
    worker = SimpleNamespace(rank=rank, world_size=2, reach=lambda *where: None)
    return CheckpointWriter("pretrain", worker)


def state(value):
    return {"weight": torch.full((3,), value)}, {"weight.exp_avg": torch.full((3,), -value)}


def test_a_checkpoint__is_of_the_moment_it_was_begun(ray_train):
    writes, (tensors, optimizer) = writer(), state(1.0)
    writes.begin(7, tensors, optimizer)
    for tensor in (*tensors.values(), *optimizer.values()):
        tensor.zero_()  # the training continues, in place, before anything is written
    writes.raise_if_failed()
    ray_train.goes_on.set()
    writes.finish()
    folder = ray_train.folder / "checkpoint-7"
    loaded, metadata = checkpoint.load(folder)
    assert loaded["weight"].tolist() == [1, 1, 1]
    assert checkpoint.load_optimizer(folder)["weight.exp_avg"].tolist() == [-1, -1, -1]
    assert metadata == {"stage": "pretrain", "next_step": 7}


def test_the_next_one__waits_for_the_one_before(ray_train):
    writes = writer()
    writes.begin(1, *state(1.0))
    second = threading.Thread(target=writes.begin, args=(2, *state(2.0)))
    second.start()
    second.join(0.2)
    assert second.is_alive() and len(ray_train.reports) == 1
    ray_train.goes_on.set()
    second.join(10)
    writes.finish()
    names = {path.name for path in ray_train.folder.iterdir()}
    assert names == {"checkpoint-1", "checkpoint-2"}


def test_no_room__the_training_ends_before_ray_train_hears_of_it(ray_train):
    ray_train.error = OSError(errno.ENOSPC, "No space left on device")
    writes = writer()
    writes.begin(1, *state(1.0))
    ray_train.goes_on.set()
    with pytest.raises(StorageError, match="a checkpoint of pretrain.*No space.*same command"):
        while not ray_train.reports[0].done():
            writes.raise_if_failed()
    with pytest.raises(StorageError):
        ray_train.reports[0].result(10)
    assert not list(ray_train.folder.iterdir())


def test_other_workers_write_nothing(ray_train):
    writes = writer(rank=1)
    writes.begin(1, *state(1.0))
    writes.finish()
    assert not ray_train.reports


@pytest.fixture
def worker():
    said = []
    return SimpleNamespace(
        world_size=1, device=torch.device("cpu"), log=said.append, said=said, rank=0
    )


@pytest.fixture
def reported(tmp_path, monkeypatch):
    """A checkpoint that Ray Train names: of the stage pretrain, after its third step."""
    folder = tmp_path / "checkpoint"
    checkpoint.save(
        folder, {"weight": torch.ones(2)}, {"stage": "pretrain", "next_step": 3},
        optimizer={"weight.exp_avg": torch.zeros(2)},
    )  # fmt: skip
    named = ray.train.Checkpoint.from_directory(str(folder))
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: named)
    return folder


def test_of_this_training(worker, reported):
    saved = _last_checkpoint("pretrain", worker)
    assert saved is not None and saved[2] == 3
    assert saved[0]["weight"].tolist() == [1, 1]


@pytest.mark.parametrize("is_deleted", [False, True])
def test_of_another_one__nothing_is_said(worker, reported, is_deleted):
    if is_deleted:
        shutil.rmtree(reported)
    assert _last_checkpoint("iteration-01", worker) is None
    assert worker.said == []


def test_damaged__its_file_is_named(worker, reported):
    weights = reported / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert _last_checkpoint("pretrain", worker) is None
    assert "starts from its first step again" in worker.said[0]["note"]
    assert "weights.safetensors" in worker.said[0]["note"]
