"""The paper's losses as pure functions: Eq. 3, 5, 6 and 7; and one from beyond it.

Shapes: B images, K classes. Logits are unnormalised; every loss is a mean over its images.
Everything is computed in float32 whatever the autocast type.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F


def hard_label_loss(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Eq. 3: -log p(y|x), the cross entropy on known identities (or hard pseudo-labels)."""
    return F.cross_entropy(logits_BK.float(), labels_B.long())


def soft_label_loss(logits_BK: Tensor, weights_BK: Tensor) -> Tensor:
    """Eq. 5: -sum_k w_k log p(k|x), with the weights of Eq. 4 (which need not sum to 1)."""
    log_probabilities_BK = F.log_softmax(logits_BK.float(), dim=1)
    return -(weights_BK.float() * log_probabilities_BK).sum(dim=1).mean()


def domain_loss(domain_logits_B2: Tensor, domains_B: Tensor) -> Tensor:
    """Eq. 6: cross entropy of the domain classifier; 0 is the source, 1 the target."""
    return hard_label_loss(domain_logits_B2, domains_B)


@dataclass(frozen=True)
class LossTerms:
    """The terms of Eq. 7, those from beyond it that are in use, and the weighted sum of all.

    Each is a scalar tensor.
    """

    source: Tensor
    target: Tensor
    domain: Tensor
    total: Tensor
    exchange: Tensor | None = None
    triplet: Tensor | None = None
    teacher: Tensor | None = None

    def add(self, name: str, term: Tensor, weight: float) -> "LossTerms":
        """With a term from beyond Eq. 7."""
        return replace(self, **{name: term}, total=self.total + weight * term)

    def detached(self) -> dict[str, Tensor]:
        """The terms in use, without their gradients' history."""
        terms = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: term.detach() for name, term in terms.items() if term is not None}

    def as_dict(self) -> dict[str, float]:
        return {name: float(term) for name, term in self.detached().items()}


def total_loss(
    source_logits_BK: Tensor | None,
    source_labels_B: Tensor | None,
    target_logits_BK: Tensor | None,
    target_weights_BK: Tensor | None,
    domain_logits_B2: Tensor | None,
    domains_B: Tensor | None,
    source_weight: float = 1.0,
    target_weight: float = 1.0,
    domain_weight: float = 1.0,
) -> LossTerms:
    """Eq. 7: L^cro_s + L^DSP on source images, L^cro_t + L^DSP on target images.

    A term whose logits are None is 0: pretraining has only the first. Each domain's
    identity loss is a mean over that domain's images, the domain loss one over all of them.
    Eq. 7 is per image; its mean over a batch of equal halves has the weights 0.5, 0.5 and 1.
    """
    given = next(x for x in (source_logits_BK, target_logits_BK, domain_logits_B2) if x is not None)
    source = target = domain = torch.zeros((), device=given.device)
    if source_logits_BK is not None and source_labels_B is not None:
        source = hard_label_loss(source_logits_BK, source_labels_B)
    if target_logits_BK is not None and target_weights_BK is not None:
        target = soft_label_loss(target_logits_BK, target_weights_BK)
    if domain_logits_B2 is not None and domains_B is not None:
        domain = domain_loss(domain_logits_B2, domains_B)
    total = source_weight * source + target_weight * target + domain_weight * domain
    return LossTerms(source, target, domain, total)


def triplet_loss(features_BC: Tensor, labels_B: Tensor, margin: float | None = None) -> Tensor:
    """Compares each image's farthest of the same label (d_p) with its nearest of another (d_n).

    Without a margin, the softmax-triplet loss of Ge et al., "Mutual Mean-Teaching", ICLR 2020,
    Eq. 7, with hard labels: -log(exp(d_n) / (exp(d_p) + exp(d_n))), which is
    log(1 + exp(d_p - d_n)). With one, max(0, margin + d_p - d_n) of Hermans et al., "In Defense of
    the Triplet Loss", 2017, Eq. 5. d are Euclidean distances of the features as given; the result
    is a mean over images. Images without another of their label, or of another label, don't count.
    """
    features_BC = features_BC.float()
    squares_B = features_BC.square().sum(1)
    sq_distances_BB = squares_B[:, None] + squares_B - 2 * features_BC @ features_BC.T
    distances_BB = sq_distances_BB.clamp(min=1e-12).sqrt()  # the slope of a root at 0 is infinite
    same_BB = labels_B[:, None] == labels_B
    other_self_BB = same_BB & ~torch.eye(len(labels_B), dtype=torch.bool, device=labels_B.device)
    has_both_B = other_self_BB.any(1) & ~same_BB.all(1)
    farthest_B = distances_BB.masked_fill(~other_self_BB, -torch.inf).amax(1)
    nearest_B = distances_BB.masked_fill(same_BB, torch.inf).amin(1)
    gaps_B = torch.where(has_both_B, farthest_B - nearest_B, 0.0)
    losses_B = F.softplus(gaps_B) if margin is None else F.relu(margin + gaps_B)
    losses_B = losses_B * has_both_B
    return losses_B.sum() / has_both_B.sum().clamp(min=1)
