"""Which checkpoint a training resumes from, and what it says of one that is damaged."""

import shutil
from types import SimpleNamespace

import pytest
import ray.train
import torch

from daal import checkpoint
from pipelines.training.train_state import _last_checkpoint


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
