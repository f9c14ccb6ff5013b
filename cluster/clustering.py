"""The seam for clusterers: from pairs' distances to labels.

A clusterer is a class in a file of its own, a line of `cluster.estimate.CLUSTERERS`, and a name of
`cluster.method` in `daal.config`.
"""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from cluster.arrays import Labels
from cluster.pairs import Pairs

GIANT = 500  # no cluster up to this size is called giant in sets of 1,000 images and more


class Clustering(NamedTuple):
    """What a clusterer found. `labels_N` (N,) int64 are by row of the pairs, numbered by
    `numbered_by_sample`; -1 is an outlier.

    Of the symmetric `distance`, the clusterer looked at the distances below `reach`. `eps`,
    `first_eps`, `p` and `num_backoffs`: see `cluster.estimate.PseudoLabels`. `notes` are for the
    user, and `keeps_more` says what would make fewer images outliers.
    """

    labels_N: Labels
    distance: csr_array
    reach: float
    keeps_more: str
    eps: float = 1.0
    first_eps: float = 1.0
    p: float | None = None
    num_backoffs: int = 0
    notes: tuple[str, ...] = ()


class Clusterer(Protocol):
    """Made as `(runner, config, eps)`, before anything is computed; raises ConfigError if it can't
    run here. `eps` is one that was found before, or None."""

    def cluster(self, pairs: Pairs) -> Clustering:
        """Raises LabelError if there are fewer than `config.min_clusters` clusters, or if one is
        larger than `giant_size`."""


def giant_size(num_samples: int, max_share: float) -> float:
    """The largest size that isn't giant: `max_share` of all, but no less than 500 images, or
    than half of a set below 1,000 (where 500 would never be reached)."""
    return max(max_share * num_samples, min(GIANT, num_samples / 2))


def numbered_by_sample(
    groups_M: npt.NDArray[np.integer], samples_M: npt.NDArray[np.integer]
) -> Labels:
    """Groups of samples, given by any distinct numbers, numbered from 0 by their lowest sample."""
    _, first, group = np.unique(groups_M, return_index=True, return_inverse=True)
    lowest = samples_M[first]
    np.minimum.at(lowest, group, samples_M)
    return np.argsort(np.argsort(lowest))[group]
