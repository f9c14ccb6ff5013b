"""One update of the weights: the only place where gradients happen.

Nothing here waits for the device. Whether a step may change the weights is decided there: the
finite check ends in a tensor that the optimizer's fused kernels read.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import SupportsFloat

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from daal import losses
from daal.config import LossConfig
from daal.errors import TrainingDiverged
from daal.nn.heads import ClusterMemory
from daal.nn.network import NetworkOutput
from daal.teacher import Teacher
from daal.whole_batch import whole_batch


@dataclass(frozen=True)
class TrainBatch:
    """One worker's part of a batch, source images first.

    images_BCHW: augmented and normalised, float32. source_labels_S: class indices of the
    source rows. target_weights_TK: Eq. 4's weights (or one-hot, or smoothed) of the others, and
    target_labels_T their clusters, which only losses and heads from beyond the paper need.
    """

    images_BCHW: Tensor
    source_labels_S: Tensor
    target_weights_TK: Tensor | None
    target_labels_T: Tensor | None = None
    stripe_labels_TS: Tensor | None = None  # of their stripes (SSG)

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
    batches: Sequence[TrainBatch],
    optimizer: torch.optim.Optimizer,
    weights: LossConfig,
    diverged: Tensor,
    agree: Callable[[Tensor], None],
    autocast: torch.autocast,
    teacher: Teacher | None = None,
) -> losses.LossTerms:
    """Forward, Eq. 7 and backward of each micro-batch, then one update by their mean.

    `batches` are this worker's share of one global batch, in equal parts. `diverged` (float32
    scalar on the device) becomes 1 when a loss or gradient of any worker isn't finite, and stays
    so: from then on neither weights nor the optimizer's state change. `agree` takes the maximum
    of it over all workers, in place. `optimizer` is one of `daal.optimizer`. A teacher follows the
    new weights, and a cluster memory the features.

    Returns the means of the loss terms over the micro-batches, detached.
    """
    optimizer.zero_grad(set_to_none=True)
    # Gradients go to the other workers once, with the last micro-batch.
    alone = model.no_sync if isinstance(model, DistributedDataParallel) else nullcontext
    found, features = [], []
    for number, batch in enumerate(batches, start=1):
        with alone() if number < len(batches) else nullcontext():
            with autocast:
                out = model(batch.images_BCHW, batch.num_source)
            terms = _loss_terms(out, batch, weights)
            if teacher is not None and weights.teacher_weight and out.target_logits_BK is not None:
                with autocast:
                    taught_BK = teacher(batch.images_BCHW, batch.num_source).target_logits_BK
                assert taught_BK is not None  # it has the network's heads
                soft_BK = taught_BK.float().softmax(1)  # the weights of Eq. 5
                term = losses.soft_label_loss(out.target_logits_BK, soft_BK)
                terms = terms.add("teacher", term, weights.teacher_weight)
            (terms.total / len(batches)).backward()  # type: ignore[no-untyped-call]
        found.append(terms.detached())
        features.append(out.shared_BC[batch.num_source :].detach())
    terms = losses.LossTerms(
        **{name: torch.stack([some[name] for some in found]).mean(0) for name in found[0]}
    )

    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    is_bad = ~(torch.isfinite(terms.total) & torch.isfinite(norm))
    torch.maximum(diverged, is_bad.float(), out=diverged)
    agree(diverged)
    optimizer.found_inf = diverged  # type: ignore[attr-defined]
    optimizer.step()
    network = model.module if isinstance(model, DistributedDataParallel) else model
    if isinstance(network.target_head, ClusterMemory):
        for features_TC, batch in zip(features, batches, strict=True):
            assert batch.target_labels_T is not None, "a cluster memory needs target_labels_T"
            labels_T = whole_batch(batch.target_labels_T)
            network.target_head.update(whole_batch(features_TC), labels_T, diverged)
    if teacher is not None:
        teacher.follow(network)
    return terms


def _loss_terms(out: NetworkOutput, batch: TrainBatch, weights: LossConfig) -> losses.LossTerms:
    terms = _eq_7(out, batch, batch.domains_B, weights)
    if out.exchanged is not None:
        domains_B = batch.domains_B.roll(-batch.num_source)  # of the specific parts
        exchanged = _eq_7(out.exchanged, batch, domains_B, weights)
        terms = terms.add("exchange", exchanged.total, weights.exchange_weight)
    if weights.triplet_weight and batch.target_labels_T is not None:
        # Hardest images are looked for in the whole batch, of all workers.
        loss = partial(losses.triplet_loss, margin=weights.triplet_margin)
        pooled_TC = whole_batch(out.pooled_BC[batch.num_source :])
        triplet = loss(pooled_TC, whole_batch(batch.target_labels_T))
        if out.stripes_BSC is not None and batch.stripe_labels_TS is not None:
            stripes_TSC = whole_batch(out.stripes_BSC[batch.num_source :])
            labels_TS = whole_batch(batch.stripe_labels_TS)
            for stripe in zip(stripes_TSC.unbind(1), labels_TS.unbind(1), strict=True):
                triplet = triplet + loss(*stripe)
        terms = terms.add("triplet", triplet, weights.triplet_weight)
    return terms


def _eq_7(
    out: NetworkOutput, batch: TrainBatch, domains_B: Tensor, weights: LossConfig
) -> losses.LossTerms:
    return losses.total_loss(
        out.source_logits_BS,
        batch.source_labels_S,
        out.target_logits_BK,
        batch.target_weights_TK,
        out.domain_logits_B2,
        domains_B,
        source_weight=weights.source_weight,
        target_weight=weights.target_weight,
        domain_weight=weights.domain_weight,
    )


def raise_if_diverged(diverged: SupportsFloat, terms: losses.LossTerms, step: int) -> None:
    """Check `train_step`'s flag after `step` (counted from 0), whose loss terms are `terms`.

    To keep a GPU busy, make a `HostCopy` of the flag after each step, and check it one step later.

    Raises:
        TrainingDiverged: the flag is set. The workers agree on it, so that all of them raise.
    """
    if float(diverged) != 0:
        raise TrainingDiverged(
            f"a loss or gradient is not finite at step {step + 1} ({terms.as_dict()}); the weights "
            "are those before this step: lower optim.lr_backbone and optim.lr_new."
        )
