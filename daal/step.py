"""One update of the weights: the only place where gradients happen."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from daal import losses
from daal.config import FitConfig, LossConfig, OptimConfig
from daal.errors import TrainingDiverged
from daal.network import DaalNetwork


@dataclass(frozen=True)
class TrainBatch:
    """One worker's part of a batch, source images first.

    images_BCHW: augmented and normalised, float32. source_labels_S: class indices of the
    source rows. target_weights_TK: Eq. 4's weights (or one-hot, or smoothed) of the others.
    """

    images_BCHW: Tensor
    source_labels_S: Tensor
    target_weights_TK: Tensor | None

    @property
    def num_source(self) -> int:
        return len(self.source_labels_S)

    @property
    def domains_B(self) -> Tensor:
        """0 for source rows, 1 for target rows (Eq. 6)."""
        positions = torch.arange(len(self.images_BCHW), device=self.images_BCHW.device)
        return (positions >= self.num_source).long()


def train_step(
    model: nn.Module,
    batch: TrainBatch,
    optimizer: torch.optim.Optimizer,
    weights: LossConfig,
    everywhere: Callable[[Tensor], bool],
    autocast: torch.autocast,
) -> losses.LossTerms:
    """Forward, Eq. 7, backward, update.

    `everywhere` tells whether a boolean scalar holds on all workers.

    Raises:
        TrainingDiverged: on every worker, before any weight changes, if the loss or a
            gradient of one of them isn't finite.
    """
    with autocast:
        out = model(batch.images_BCHW, batch.num_source)
    terms = losses.total_loss(
        out.source_logits_BS,
        batch.source_labels_S,
        out.target_logits_BK,
        batch.target_weights_TK,
        out.domain_logits_B2,
        batch.domains_B,
        source_weight=weights.source_weight,
        target_weight=weights.target_weight,
        domain_weight=weights.domain_weight,
    )
    optimizer.zero_grad(set_to_none=True)
    terms.total.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if not everywhere(torch.isfinite(terms.total.detach()) & torch.isfinite(norm)):
        raise TrainingDiverged(
            f"a loss or gradient is not finite ({terms.as_dict()}); the weights are those "
            "before this step: lower optim.lr_backbone and optim.lr_new, or add warmup_steps."
        )
    optimizer.step()
    return terms


def mixed_precision(device: torch.device, wanted: bool) -> torch.autocast:
    """bf16 autocast where the device multiplies bf16 natively; does nothing elsewhere."""
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    else:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=bool(wanted and native))


def make_optimizer(network: DaalNetwork, config: OptimConfig) -> torch.optim.Optimizer:
    """The paper's two rates: backbone layers, and all others."""
    backbone, new = network.parameter_groups()
    groups = [
        {"params": backbone, "base_lr": config.lr_backbone},
        {"params": new, "base_lr": config.lr_new},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=config.lr_new,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
    return torch.optim.Adam(groups, lr=config.lr_new, weight_decay=config.weight_decay)


def set_learning_rate(
    optimizer: torch.optim.Optimizer, fit: FitConfig, step: int, steps_per_epoch: int
) -> float:
    """Linear warm-up, then times `decay` every `decay_every_epochs`; a function of the step alone.

    Returns the rate of the last group (the non-backbone layers).
    """
    config = fit.optim
    epoch = step // steps_per_epoch
    if config.decay_at_epochs is None:
        num_decays = epoch // config.decay_every_epochs
    else:
        num_decays = sum(epoch >= at for at in config.decay_at_epochs)
    factor = config.decay**num_decays
    if step < config.warmup_steps:
        factor *= (step + 1) / config.warmup_steps
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[-1]["lr"])
