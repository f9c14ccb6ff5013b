"""UDAP's source term: target images that look like no source image are farther from each other.

Song et al., "Unsupervised Domain Adaptive Re-Identification: Theory and Practice", Pattern
Recognition 2020 (arXiv 1807.11334), sec. 3.3. The distance of a pair becomes

    (1 - weight) Jaccard + weight (w_i + w_j),    w = 1 - exp(-d^2) / its largest value,

d being the distance to the nearest source image. Their code takes features as they are and 0.1 as
weight; here they are of length 1, like everywhere in this package.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

ROWS = 1024  # of products at a time


def source_distance(
    features_ND: npt.NDArray[np.float32], source_MD: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """w of each target feature, float32 (N,), in 0-1. Features of any length count at length 1."""
    source = source_MD / np.maximum(np.linalg.norm(source_MD, axis=1, keepdims=True), 1e-12)
    nearest_N = np.empty(len(features_ND))
    for start in range(0, len(features_ND), ROWS):
        some = features_ND[start : start + ROWS]
        some = some / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-12)
        nearest_N[start : start + ROWS] = 2 - 2 * np.minimum((some @ source.T).max(1), 1)
    w_N = 1 - np.exp(-nearest_N)
    largest = w_N.max()
    return (w_N / largest if largest > 0 else w_N).astype(np.float32)


class SourceTerm(NamedTuple):
    """`weight` below 1, and w of each row of the distances."""

    weight: float
    w_N: npt.NDArray[np.float32]

    def reach(self, distance: float) -> float:
        """Pairs with a total below `distance` have a Jaccard distance below this."""
        return min(1.0, distance / (1 - self.weight))

    def reach_beyond(self, distance: float) -> float:
        """Pairs whose total is no more than that of a pair at this Jaccard distance have one up
        to this: the term adds at most twice the weight."""
        return min(1.0, distance + 2 * self.weight / (1 - self.weight))

    def added_to(self, upper: csr_array) -> csr_array:
        """The totals of the pairs of a strict upper triangle of Jaccard distances."""
        rows = np.repeat(np.arange(upper.shape[0]), np.diff(upper.indptr))
        terms = self.weight * (self.w_N[rows] + self.w_N[upper.indices])
        totals = ((1 - self.weight) * upper.data + terms).astype(np.float32)
        return csr_array((totals, upper.indices, upper.indptr), shape=upper.shape)
