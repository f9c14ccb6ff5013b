"""Optimizers that can leave a step out, their state, and the learning rate of each step."""

import pytest
import torch
from one_step import OPTIMIZERS, assert_same_bits, everything, setting, step

from daal import checkpoint
from daal.config import AdaptConfig, AdaptOptimConfig, PretrainConfig, PretrainOptimConfig
from daal.errors import CheckpointError
from daal.optimizer import make_optimizer, set_learning_rate


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fused_optimizers_equal_the_plain_ones(name):
    config = OPTIMIZERS[name]
    networks = [setting()[0].to(memory_format=torch.channels_last) for _ in range(2)]
    fused = make_optimizer(networks[0], config, weight_decay=0.1)
    settings = {"lr": config.lr_new, "weight_decay": 0.1, "foreach": False}
    if name == "adam":
        plain = torch.optim.Adam(networks[1].parameters(), **settings)
    elif name == "adamw":
        decayed, others = [], []
        for key, parameter in networks[1].named_parameters():
            is_weight = parameter.ndim > 1 and key.endswith(".weight")
            (decayed if is_weight else others).append(parameter)
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0}]
        plain = torch.optim.AdamW(groups, **settings)
    else:
        plain = torch.optim.SGD(networks[1].parameters(), **settings, momentum=0.9)
    for seed in range(5):
        for network, optimizer in zip(networks, (fused, plain), strict=True):
            torch.manual_seed(seed)
            for parameter in network.parameters():
                parameter.grad = torch.randn(parameter.shape).to(parameter)
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
            optimizer.step()
    for ours, theirs in zip(*(n.parameters() for n in networks), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_before", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_restored_optimizers_continue_to_the_bit(name, num_before):
    network, batch = setting()
    optimizer = make_optimizer(network, OPTIMIZERS[name])
    for _ in range(num_before):
        step(network, batch, optimizer)
    saved = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = checkpoint.optimizer_tensors(optimizer, network.named_parameters())
    state = {name: tensor.clone() for name, tensor in state.items()}

    again, _ = setting()
    again.load_state_dict(saved)
    restored = make_optimizer(again, OPTIMIZERS[name])
    checkpoint.restore_optimizer(restored, again.named_parameters(), state)
    for pair in ((network, optimizer), (again, restored)):
        for _ in range(2):
            step(pair[0], batch, pair[1])
    assert_same_bits(everything(again, restored), everything(network, optimizer))


def test_state_that_does_not_fit__is_refused_and_changes_nothing():
    network, batch = setting()
    optimizer = make_optimizer(network, OPTIMIZERS["adam"])
    step(network, batch, optimizer)
    before = everything(network, optimizer)
    state = checkpoint.optimizer_tensors(optimizer, network.named_parameters())
    for key in ("gone.weight.exp_avg", "domain_head.bias.exp_avg", "domain_head.bias.step"):
        with pytest.raises(CheckpointError, match=rf"{key}' of shape \(9,\) fits no parameter"):
            given = state | {key: torch.ones(9)}
            checkpoint.restore_optimizer(optimizer, network.named_parameters(), given)
        assert_same_bits(everything(network, optimizer), before)


def test_schedule__two_rates_warm_up_and_decay():
    fit = PretrainConfig(optim=PretrainOptimConfig(warmup_steps=4, decay_at_epochs=[2, 4]))
    optimizer = make_optimizer(setting()[0], fit.optim)
    for number, factor in ((0, 1 / 4), (3, 1), (5, 1), (6, 0.1)):  # two epochs of three steps
        set_learning_rate(optimizer, fit, number, steps_per_epoch=3)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([factor * 1.5e-4, factor * 3e-5])


@pytest.mark.parametrize(
    ("optim", "decays"),  # of (iteration, epoch)
    [
        ({}, {(0, 0): 0, (0, 59): 0, (0, 60): 1, (9, 180): 3, (0, 259): 4}),  # paper: every 60
        ({"decay_at_epochs": [20, 80]}, {(0, 19): 0, (0, 20): 1, (0, 79): 1, (0, 259): 2}),
        ({"decay_at_iterations": [3, 5]}, {(2, 60): 1, (3, 60): 2, (4, 60): 2, (5, 60): 3}),
    ],
)
def test_schedule__listed_epochs_and_iterations(optim, decays):
    fit = AdaptConfig(optim=AdaptOptimConfig(**optim))
    optimizer = make_optimizer(setting()[0], fit.optim)
    for (iteration, epoch), number in decays.items():
        rate = set_learning_rate(optimizer, fit, epoch, 1, iteration)
        assert rate == pytest.approx(3e-5 * 0.1**number)
