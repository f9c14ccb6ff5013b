"""Mean features of clusters."""

from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.compiled import kernel
from daal.errors import LabelError


def centroids(
    features_ND: npt.NDArray[np.float32], labels_N: npt.NDArray[np.integer]
) -> npt.NDArray[np.float32]:
    """Mean feature of every cluster, (K, D): arithmetic, not normalised again, outliers left out.

    Means are taken in float64, then rounded. K is the largest label + 1 (0 rows if all samples
    are outliers). Raises LabelError if a label below it has no sample.
    """
    order = np.argsort(labels_N, kind="stable")
    num_clusters = int(labels_N.max(initial=-1)) + 1
    edges = np.searchsorted(labels_N[order], np.arange(num_clusters + 1))
    empty = np.flatnonzero(np.diff(edges) == 0)
    if len(empty):
        raise LabelError(f"Cluster {empty[0]} has no sample; number clusters 0..K-1 without gaps.")
    means: npt.NDArray[np.float32] = _means(features_ND, order, edges)
    return means


@kernel
def _means(features_ND: Any, order_N: Any, edges: Any) -> Any:
    means = np.empty((len(edges) - 1, features_ND.shape[1]), np.float32)
    total = np.empty(features_ND.shape[1], np.float64)
    for k in range(len(means)):
        total[:] = 0
        for place in range(edges[k], edges[k + 1]):
            row = features_ND[order_N[place]]
            for d in range(len(row)):
                total[d] += row[d]
        means[k] = total / (edges[k + 1] - edges[k])
    return means
