"""HDBSCAN (Campello, Moulavi and Sander 2013) by scikit-learn, on sparse distances: without eps."""

import numpy as np
from scipy.sparse import csr_array, csr_matrix

from cluster.arrays import Labels
from cluster.clustering import Clustering, giant_size, numbered_by_sample
from cluster.eps import MAX_PAIRS, SAMPLED_ROWS
from cluster.pairs import ZERO, Pairs, symmetric
from cluster.run import Runner
from daal.config import ClusterConfig
from daal.errors import LabelError


class Hdbscan:
    """`cluster.clustering.Clusterer`: a cluster has at least `min_samples` images (and 2)."""

    def __init__(self, runner: Runner, config: ClusterConfig, eps: float | None = None) -> None:
        self.config = config

    def cluster(self, pairs: Pairs) -> Clustering:
        num_samples = pairs.num_samples
        every = max(1, num_samples // SAMPLED_ROWS)
        num_zero, counts = pairs.jaccard_histogram(every)
        num_pairs = every * (num_zero + int(counts.sum()))
        if num_pairs > MAX_PAIRS:
            raise LabelError(
                f"cluster.method=hdbscan would hold some {num_pairs:.2g} distances in memory, and "
                f"at most {MAX_PAIRS:.2g} are allowed; use cluster.method=dbscan."
            )
        distance = symmetric(pairs.jaccard_below(1.0))
        labels = hdbscan(distance, self.config.min_samples)
        inside = labels >= 0
        labels[inside] = numbered_by_sample(labels[inside], pairs.samples_N[inside])
        sizes = np.bincount(labels[inside])
        if len(sizes) < self.config.min_clusters:
            raise LabelError(
                f"HDBSCAN found {len(sizes)} cluster(s), fewer than "
                f"min_clusters={self.config.min_clusters}; use a smaller cluster.min_samples, "
                "cluster.method=dbscan, or more images."
            )
        if sizes.max() > giant_size(num_samples, self.config.max_cluster_share):
            raise LabelError(
                f"One cluster of HDBSCAN holds {sizes.max()} of {num_samples} images; use "
                "cluster.method=dbscan, which takes a smaller eps then, or a better source model."
            )
        return Clustering(labels, distance, 1.0, "a smaller cluster.min_samples")


def hdbscan(distance: csr_array, min_samples: int) -> Labels:
    """Labels (N,) int64 of a symmetric `distance` (N, N), of which absent means 1; -1: outlier.

    `min_samples` counts the sample itself, as scikit-learn does.
    """
    from sklearn.cluster import HDBSCAN  # takes a second, and 130 MB

    num_samples = distance.shape[0]
    if num_samples <= min_samples:
        return np.full(num_samples, -1, np.int64)
    # scikit-learn wants a connected graph, with enough neighbours of each sample. Pairs at distance
    # 1 are left out otherwise; here each sample keeps those with the next ones in the order of
    # rows. Nearness is 2 - distance, so that each pair keeps its smaller distance.
    rows = np.arange(num_samples)
    next_rows = [(rows + step) % num_samples for step in range(1, min_samples + 1)]
    ring = csr_array(
        (np.ones(num_samples * min_samples), (np.tile(rows, min_samples), np.hstack(next_rows))),
        shape=distance.shape,
    )
    # A distance of 0 would be no edge.
    stored = np.maximum(distance.data.astype(np.float64), ZERO)
    nearness = csr_array((2 - stored, distance.indices, distance.indptr), shape=distance.shape)
    nearness = nearness.maximum(ring).maximum(ring.T).tocsr()
    graph = csr_matrix((2 - nearness.data, nearness.indices, nearness.indptr), distance.shape)
    found = HDBSCAN(
        min_cluster_size=max(2, min_samples),
        min_samples=min_samples,
        metric="precomputed",
        copy=False,
    ).fit(graph)
    return np.asarray(found.labels_, np.int64)
