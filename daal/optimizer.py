"""The optimizer with the paper's two rates, and the learning rate of each step."""

from typing import Any

import torch
from torch import Tensor, nn

from daal.config import FitConfig, OptimConfig
from daal.nn.network import DaalNetwork

MOMENTUM = 0.9  # of SGD, as in the paper
# sgd, adam: not given; SSG and ECN use it. adamw: as ConvNeXt and BEiT are fine-tuned.
WEIGHT_DECAY = {"sgd": 5e-4, "adam": 5e-4, "adamw": 0.05}
DECAY = 0.1  # factor of each decay, as in the paper


def make_optimizer(
    network: DaalNetwork,
    config: OptimConfig,
    capturable: bool | None = None,
    weight_decay: float | None = None,
) -> torch.optim.Optimizer:
    """The paper's two rates: backbone layers, and all others.

    `network` is on its device and in its memory format already, as the state is made like it.
    `capturable`, by default on GPUs: rates are float32 tensors on the device, which
    `set_learning_rate` fills, so that a captured step (`daal.captured_step`) sees them change.
    """
    if weight_decay is None:
        weight_decay = WEIGHT_DECAY[config.optimizer]
    groups = _groups(network, config, weight_decay)
    parameters = [parameter for group in groups for parameter in group["params"]]
    device = parameters[0].device
    if capturable is None:
        capturable = device.type == "cuda"
    for group in groups:
        rate = group["base_lr"]
        group["lr"] = torch.tensor(rate, device=device) if capturable else rate
    # Only fused kernels can leave a step out by a flag on the device (`found_inf`).
    if config.optimizer != "sgd":
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, lr=config.lr_new, fused=True, capturable=capturable)
    optimizer = torch.optim.SGD(groups, lr=config.lr_new, momentum=MOMENTUM, fused=True)
    # A first step makes these buffers, and if it is left out they hold what was in memory. From
    # zeros it gives the same: the gradient.
    for parameter in parameters:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _groups(network: DaalNetwork, config: OptimConfig, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters of one rate and decay each, those of the backbone, which
    the network has first, before the others."""
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        after = network.stages_after(name)
        is_new = after is None
        rate = (
            config.lr_new
            if after is None
            else config.lr_backbone * config.layer_decay ** (after + 1)
        )
        # Of AdamW: weights that multiply, and neither shifts and scales nor positions and tokens.
        is_weight = parameter.ndim > 1 and name.endswith(".weight")
        decays = config.optimizer != "adamw" or is_weight
        key = (is_new, rate, weight_decay if decays else 0.0)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "base_lr": rate, "weight_decay": decay}
        for (_, rate, decay), parameters in groups.items()
    ]


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
