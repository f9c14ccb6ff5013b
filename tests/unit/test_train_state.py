"""Which checkpoint a training goes on from, and what it says of those it can't."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray.train
import torch

from daal import checkpoint
from daal.data.plan import Plan
from daal.load_config import load_config
from daal.nn.network import DaalNetwork
from daal.optimizer import make_optimizer
from pipelines.training.train_state import TrainState, _last_checkpoint


@pytest.fixture
def worker() -> Any:
    said: list[dict[str, Any]] = []
    return SimpleNamespace(
        world_size=1, device=torch.device("cpu"), log=said.append, said=said, rank=0
    )


@pytest.fixture
def reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint that Ray Train names: of the stage pretrain, behind its third step."""
    folder = tmp_path / "checkpoint"
    checkpoint.save(
        folder, {"weight": torch.ones(2)}, {"stage": "pretrain", "next_step": 3},
        optimizer={"weight.exp_avg": torch.zeros(2)},
    )  # fmt: skip
    named = ray.train.Checkpoint.from_directory(str(folder))
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: named)
    return folder


def test_of_this_training(worker: Any, reported: Path) -> None:
    saved = _last_checkpoint("pretrain", worker)
    assert saved is not None and saved[2] == 3
    assert saved[0]["weight"].tolist() == [1, 1]


def test_of_another_one__nothing_is_said(worker: Any, reported: Path) -> None:
    assert _last_checkpoint("iteration-01", worker) is None
    assert worker.said == []


def test_deleted_since__nothing_is_said(worker: Any, reported: Path) -> None:
    shutil.rmtree(reported)
    assert _last_checkpoint("iteration-01", worker) is None
    assert worker.said == []


def test_damaged__its_file_is_named(worker: Any, reported: Path) -> None:
    weights = reported / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert _last_checkpoint("pretrain", worker) is None
    assert "starts from its first step again" in worker.said[0]["note"]
    assert "weights.safetensors" in worker.said[0]["note"]


@pytest.mark.parametrize(
    ("begun_on", "settings", "said"), [(2, [], True), (1, [], False), (None, [], False),
                                       (2, ["ray.min_workers=1"], False)],
)  # fmt: skip
def test_begun_on_other_workers__is_said__but_of_an_elastic_run(
    worker: Any, reported: Path, begun_on: int | None, settings: list[str], said: bool
) -> None:
    config = load_config(None, ["network.backbone=resnet18", "network.weights=none", *settings])
    network, rows = DaalNetwork(config.network, num_source_ids=2), np.arange(32)
    optimizer = make_optimizer(network, config.pretrain.optim)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    shutil.rmtree(reported)
    checkpoint.save(
        reported,
        network.state_dict(),
        {"stage": "pretrain", "next_step": 3} | ({"workers": begun_on} if begun_on else {}),
        optimizer=checkpoint.optimizer_tensors(optimizer, network.named_parameters()),
    )
    plan = Plan(0, 0, 1, 32, 0, rows, rows[:0], rows[:0])
    state = TrainState.start("pretrain", worker, network, plan, config.pretrain, config)
    assert state.next_step == 3
    notes = [event["note"] for event in worker.said]
    assert [("continues on 1 worker what 2 have begun" in note) for note in notes] == [True] * said
