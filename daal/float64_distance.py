"""Distances in float64 that don't depend on the device, the number of threads or the batch.

Shapes: N and B features, G gallery features, D channels, P pairs. Work is done in pieces that stay
in a processor's cache.
"""

import torch
from torch import Tensor

CACHED_SIZE = 2**18  # numbers in what is done in float64: 2 MB stay in a processor's cache
CACHED_SIZE_ON_GPU = 2**22


def centred(features_ND: Tensor, centre_D: Tensor, factor: float, out_ND: Tensor) -> Tensor:
    """`factor` times the features from the centre, rounded once, in `out_ND`.

    Distances don't change when both sides are moved, but the rounding of |q|^2 - 2 q.g + |g|^2
    shrinks with the norms: features that lie close together, far from 0, need this.
    """
    for some_SD, out_SD in zip(cached(features_ND), cached(out_ND), strict=True):
        out_SD.copy_((some_SD.double() - centre_D).mul_(factor))
    return out_ND


def squares(features_ND: Tensor, centre_D: Tensor) -> Tensor:
    """Squared distances from the centre, float64 (N,)."""
    squares = [(some.double() - centre_D).square_().sum(1) for some in cached(features_ND)]
    return torch.cat(squares)


def cached(features_ND: Tensor) -> tuple[Tensor, ...]:
    return torch.split(features_ND, rows_in_cache(features_ND))


def rows_in_cache(features_ND: Tensor) -> int:
    size = CACHED_SIZE if features_ND.device.type == "cpu" else CACHED_SIZE_ON_GPU
    return max(1, size // max(1, features_ND.shape[1]))


def direct_distance(
    queries_BD: Tensor, rows_P: Tensor, gallery_GD: Tensor, columns_P: Tensor
) -> Tensor:
    """Squared distance of each pair as a sum of squared differences: float64 (P,).

    The channels are added by halving, in elementwise operations, so that the order of additions is
    the same however many pairs there are and on any device: copies tie to the last bit.
    `Tensor.sum` doesn't promise that.
    """
    if len(rows_P) == 0 or queries_BD.shape[1] == 0:
        return torch.zeros(len(rows_P), dtype=torch.float64, device=queries_BD.device)
    sums = []
    step = rows_in_cache(queries_BD)
    for rows_S, columns_S in zip(
        torch.split(rows_P, step), torch.split(columns_P, step), strict=True
    ):
        # In place, as fresh memory would cost more than the arithmetic.
        terms_SD = queries_BD[rows_S].double().sub_(gallery_GD[columns_S].double()).square_()
        width = terms_SD.shape[1]
        while width > 1:
            half = width // 2
            terms_SD[:, :half] += terms_SD[:, half : 2 * half]
            if width % 2:
                terms_SD[:, 0] += terms_SD[:, width - 1]
            width = half
        sums.append(terms_SD[:, 0].clone())
    return torch.cat(sums)
