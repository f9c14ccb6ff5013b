"""A small network and batch, and a step of the only worker."""

import torch
from torch import Tensor, nn

from daal import checkpoint
from daal.config import LossConfig, NetworkConfig, OptimConfig
from daal.losses import LossTerms
from daal.nn.network import DaalNetwork
from daal.precision import mixed_precision
from daal.step import TrainBatch, train_step
from daal.teacher import Teacher

OFF = mixed_precision(torch.device("cpu"), wanted=False)
SGD = OptimConfig(lr_backbone=0.02, lr_new=0.02)
OPTIMIZERS = {
    "sgd": SGD,
    "adam": OptimConfig(optimizer="adam", lr_backbone=1e-3, lr_new=1e-3),
    "adamw": OptimConfig(optimizer="adamw", lr_backbone=1e-3, lr_new=1e-3),
}


def setting(**changes: object) -> tuple[DaalNetwork, TrainBatch]:
    torch.manual_seed(0)
    config = NetworkConfig(backbone="resnet18", weights="none", identity_head="unit")
    network = DaalNetwork(config.model_copy(update=changes), 3, 4, True)
    weights = torch.softmax(torch.randn(4, 4), dim=1)
    batch = TrainBatch(torch.randn(8, 3, 32, 16), torch.tensor([0, 1, 2, 0]), weights)
    return network.train(), batch


def step(
    model: nn.Module,
    batches: TrainBatch | list[TrainBatch],
    optimizer: torch.optim.Optimizer,
    weights: LossConfig = LossConfig(),  # noqa: B008 (frozen)
    diverged: Tensor | None = None,
    autocast: torch.autocast = OFF,
    teacher: Teacher | None = None,
) -> LossTerms:
    """A step of the only worker."""
    batches = [batches] if isinstance(batches, TrainBatch) else batches
    diverged = torch.zeros(()) if diverged is None else diverged
    return train_step(
        model, batches, optimizer, weights, diverged, lambda _: None, autocast, teacher
    )


def everything(network: DaalNetwork, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of all parameters and of the optimizer's state."""
    tensors = dict(network.named_parameters())
    tensors |= checkpoint.optimizer_tensors(optimizer, network.named_parameters())
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
