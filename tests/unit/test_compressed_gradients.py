"""Gradients that are sent as bf16 (`compress_gradients`)."""

from types import SimpleNamespace

import pytest
import torch
from one_step import SGD, setting, step

from daal.load_config import load_config
from daal.optimizer import make_optimizer
from pipelines.training.checkpoint_writer import CheckpointWriter
from pipelines.training.train_state import TrainState


def state(compressed):
    """One worker's of two, whose partner is left out."""
    worker = SimpleNamespace(world_size=2, rank=0, device=torch.device("cpu"))
    network, _ = setting()
    return TrainState(
        stage="",
        worker=worker,
        network=network,
        optimizer=make_optimizer(network, SGD),
        teacher=None,
        next_step=0,
        diverged=torch.zeros(()),
        writer=CheckpointWriter("", worker),
        compress_gradients=compressed,
    )


def gradients(trained):
    _, batch = setting()
    step(trained.distributed(), batch, trained.optimizer)
    found = {name: p.grad for name, p in trained.network.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def test_gradients_are_rounded_to_bf16(process_group):
    exact, rounded = gradients(state(False)), gradients(state(True))
    for name, gradient in rounded.items():
        assert gradient.equal(exact[name].bfloat16().float()), name
    assert not all(gradient.equal(exact[name]) for name, gradient in rounded.items())


@pytest.mark.parametrize("workers", [["num_workers=2"], ["num_workers=4", "min_workers=1"]])
def test_with_several_workers__also_if_they_may_become_one(workers):
    settings = ["compress_gradients=true", *(f"ray.{setting}" for setting in workers)]
    assert load_config(None, settings).compress_gradients
