"""The optimizer with the paper's two rates, and the learning rate of each step."""

import torch
from torch import Tensor

from daal.config import FitConfig, OptimConfig
from daal.nn.network import DaalNetwork

MOMENTUM = 0.9  # of SGD, as in the paper
WEIGHT_DECAY = 5e-4  # not given; SSG and ECN use it
DECAY = 0.1  # factor of each decay, as in the paper


def make_optimizer(
    network: DaalNetwork,
    config: OptimConfig,
    capturable: bool | None = None,
    weight_decay: float = WEIGHT_DECAY,
) -> torch.optim.Optimizer:
    """The paper's two rates: backbone layers, and all others.

    `network` is on its device and in its memory format already, as the state is made like it.
    `capturable`, by default on GPUs: rates are float32 tensors on the device, which
    `set_learning_rate` fills, so that a captured step (`daal.captured_step`) sees them change.
    """
    backbone, new = network.parameter_groups()
    device = (backbone + new)[0].device
    if capturable is None:
        capturable = device.type == "cuda"
    groups = [
        {
            "params": parameters,
            "base_lr": rate,
            "lr": torch.tensor(rate, device=device) if capturable else rate,
        }
        for parameters, rate in ((backbone, config.lr_backbone), (new, config.lr_new))
        if parameters
    ]
    # Only fused kernels can leave a step out by a flag on the device (`found_inf`).
    if config.optimizer == "adam":
        return torch.optim.Adam(
            groups,
            lr=config.lr_new,
            weight_decay=weight_decay,
            fused=True,
            capturable=capturable,
        )
    optimizer = torch.optim.SGD(
        groups,
        lr=config.lr_new,
        momentum=MOMENTUM,
        weight_decay=weight_decay,
        fused=True,
    )
    # A first step makes these buffers, and if it is left out they hold what was in memory. From
    # zeros it gives the same: the gradient.
    for parameter in backbone + new:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_learning_rate(
    optimizer: torch.optim.Optimizer,
    fit: FitConfig,
    step: int,
    steps_per_epoch: int,
    iteration: int = 0,
) -> float:
    """Linear warm-up, then times `DECAY` at each of `decay_at_epochs`; a function of time alone.

    Returns the rate of the last group (the non-backbone layers).
    """
    config = fit.optim
    epoch = step // steps_per_epoch
    num_decays = sum(epoch >= at for at in config.decay_at_epochs)
    num_decays += sum(iteration >= at for at in config.decay_at_iterations)
    factor = DECAY**num_decays
    if step < config.warmup_steps:
        factor *= (step + 1) / config.warmup_steps
    for group in optimizer.param_groups:
        rate = group["base_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    return float(rate)
