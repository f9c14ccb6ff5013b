"""One update, the finite check before it, and the schedule."""

from dataclasses import replace

import pytest
import torch

from daal.config import FitConfig, LossConfig, NetworkConfig, OptimConfig
from daal.errors import TrainingDiverged
from daal.network import DaalNetwork
from daal.step import TrainBatch, make_optimizer, mixed_precision, set_learning_rate, train_step

OFF = mixed_precision(torch.device("cpu"), wanted=False)


def setting() -> tuple[DaalNetwork, TrainBatch]:
    torch.manual_seed(0)
    network = DaalNetwork(
        NetworkConfig(backbone="resnet18", weights="none", identity_head="unit"), 3, 4, True
    )
    weights = torch.softmax(torch.randn(4, 4), dim=1)
    batch = TrainBatch(torch.randn(8, 3, 32, 16), torch.tensor([0, 1, 2, 0]), weights)
    return network.train(), batch


def test_steps_lower_every_term_of_eq7() -> None:
    network, batch = setting()
    batch = replace(batch, target_weights_TK=torch.eye(4))
    optimizer = make_optimizer(network, OptimConfig(lr_backbone=0.02, lr_new=0.02))
    set_learning_rate(optimizer, FitConfig(), 0, 1)
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    first = train_step(network, batch, optimizer, LossConfig(), bool, OFF).as_dict()
    for _ in range(15):
        last = train_step(network, batch, optimizer, LossConfig(), bool, OFF).as_dict()
    for name in ("source", "target", "domain", "total"):
        assert last[name] < first[name], name


def test_loss_weights_of_zero_leave_their_heads_alone() -> None:
    network, batch = setting()
    before = {name: tensor.clone() for name, tensor in network.domain_head.state_dict().items()}  # type: ignore[union-attr]
    optimizer = make_optimizer(network, OptimConfig(lr_new=0.1, weight_decay=0, momentum=0))
    train_step(network, batch, optimizer, LossConfig(domain_weight=0), bool, OFF)
    for name, tensor in network.domain_head.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("poison", ["image", "other worker"])
def test_not_finite_anywhere__stops_before_a_weight_changes(poison: str) -> None:
    network, batch = setting()
    if poison == "image":
        batch.images_BCHW[0, 0, 0, 0] = torch.nan
    optimizer = make_optimizer(network, OptimConfig(lr_new=0.1))
    before = {name: tensor.clone() for name, tensor in network.named_parameters()}
    everywhere = bool if poison == "image" else lambda holds: False
    with pytest.raises(TrainingDiverged, match="not finite"):
        train_step(network, batch, optimizer, LossConfig(), everywhere, OFF)
    for name, tensor in network.named_parameters():
        assert torch.equal(tensor, before[name])


def test_schedule__two_rates_warm_up_and_decay() -> None:
    network, _ = setting()
    fit = FitConfig(optim=OptimConfig(warmup_steps=4, decay_every_epochs=2))
    optimizer = make_optimizer(network, fit.optim)
    rates = []
    for step in range(12):
        set_learning_rate(optimizer, fit, step, steps_per_epoch=3)
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates[3] == [1.5e-4, 3e-5]
    assert rates[0] == pytest.approx([1.5e-4 / 4, 3e-5 / 4])
    assert rates[6] == pytest.approx([1.5e-5, 3e-6])  # after two epochs of three steps


def test_paper_schedule__drops_every_60_epochs() -> None:
    network, _ = setting()
    fit = FitConfig()
    optimizer = make_optimizer(network, fit.optim)
    rates = [set_learning_rate(optimizer, fit, epoch, 1) for epoch in (0, 59, 60, 120, 180, 259)]
    assert rates == pytest.approx([3e-5, 3e-5, 3e-6, 3e-7, 3e-8, 3e-9])


def test_schedule__listed_epochs() -> None:
    network, _ = setting()
    fit = FitConfig(optim=OptimConfig(decay_at_epochs=[20, 80]))
    optimizer = make_optimizer(network, fit.optim)
    rates = [set_learning_rate(optimizer, fit, epoch, 1) for epoch in (19, 20, 79, 80, 259)]
    assert rates == pytest.approx([3e-5, 3e-6, 3e-6, 3e-7, 3e-7])


def test_bf16_on_cpus__no_garbage_gradient_on_maps_one_pixel_wide() -> None:
    """Without the fp32 depthwise layer, most of these steps have gradients of 1e15 and more."""
    torch.manual_seed(0)
    network = DaalNetwork(
        NetworkConfig(backbone="resnet18", weights="none", identity_head="unit"), 120
    )
    network.train().to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, OptimConfig())
    images = torch.randn(8, 3, 64, 32).to(memory_format=torch.channels_last)
    bf16 = mixed_precision(torch.device("cpu"), wanted=True)
    for step in range(20):
        set_learning_rate(optimizer, FitConfig(), step, 100)
        batch = TrainBatch(images, torch.randint(120, (8,)), None)
        train_step(network, batch, optimizer, LossConfig(), bool, bf16)
        worst = max(float(p.grad.abs().max()) for p in network.parameters() if p.grad is not None)
        assert worst < 100, step


def test_domains__source_rows_first() -> None:
    _, batch = setting()
    assert batch.domains_B.tolist() == [0] * 4 + [1] * 4
