"""Weights over clusters for target samples: Eq. 4, and Table 4's two alternatives.

Called per batch on the training device: at a million images the N x K weights would take
hundreds of GB, and are never held at once.
"""

from typing import Literal

import torch

# A sample that is its own centroid (all members are copies of it) is at distance 0, and 1/0
# would make the loss infinite. Real samples are orders of magnitude further away.
MIN_SQ_DISTANCE = 1e-6


@torch.no_grad()
def soft_label_weights(
    features_ND: torch.Tensor,
    centroids_KD: torch.Tensor,
    pseudo_labels_N: torch.Tensor,
    epsilon: float = 0.9,
    form: Literal["literal", "normalized"] = "literal",
    min_sq_distance: float = MIN_SQ_DISTANCE,
) -> torch.Tensor:
    """Weight of every cluster for every sample, (N, K), float32 or wider (Eq. 4)::

        literal:     w[i, k] = (epsilon if k = y_i) + 1 / (K |f_i - C_k|^2), as printed.
        normalized:  the second term scaled to sum to 1 - epsilon in each row, so that the
                     weights sum to 1 whatever the scale of the features.

    An outlier (label -1) gets no epsilon. Squared distances count as at least `min_sq_distance`.
    The weights are targets: no gradient flows through them.
    """
    dtype = torch.promote_types(
        torch.promote_types(features_ND.dtype, centroids_KD.dtype), torch.float32
    )
    # Not |f|^2 + |C|^2 - 2 f C: that cancels exactly where 1/d^2 is largest.
    sq_distances_NK = (
        torch.cdist(
            features_ND.to(dtype),
            centroids_KD.to(dtype),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        .square()
        .clamp(min=min_sq_distance)
    )
    num_clusters = len(centroids_KD)
    weights_NK = 1 / (num_clusters * sq_distances_NK)
    if form == "normalized":
        weights_NK *= (1 - epsilon) / weights_NK.sum(1, keepdim=True)
    weights_NK += epsilon * _one_hot(pseudo_labels_N, num_clusters).to(dtype)
    return weights_NK


def hard_label_weights(labels_N: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """One-hot float32 (N, K): Eq. 3 on pseudo-labels. Outliers (-1) get a row of zeros."""
    return _one_hot(labels_N, num_clusters).float()


def lsr_weights(labels_N: torch.Tensor, num_clusters: int, epsilon: float = 0.1) -> torch.Tensor:
    """Smoothed labels, float32 (N, K): 1 - epsilon + epsilon/K at the label, epsilon/K
    elsewhere (Szegedy et al. 2016)."""
    return (1 - epsilon) * _one_hot(labels_N, num_clusters).float() + epsilon / num_clusters


def _one_hot(labels_N: torch.Tensor, num_clusters: int) -> torch.Tensor:
    # Unlike torch's one_hot this allows -1 and doesn't wait for the GPU to check the range.
    return labels_N[:, None] == torch.arange(num_clusters, device=labels_N.device)
