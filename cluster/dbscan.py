"""DBSCAN (Ester et al. 1996) on sparse distances, with eps by a rule.

The backends differ only in who joins the core samples (`cluster.core_samples`). What a neighbour
is, how clusters are numbered and where border samples go is settled here, so that all backends
give the same labels.
"""

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from cluster.arrays import Labels
from cluster.clustering import Clustering, giant_size, numbered_by_sample
from cluster.core_samples import JoinCores, core_flags, join_by_components, join_cores_by
from cluster.eps import TOLERANCE, EpsRule, distances_for, reach
from cluster.pairs import Pairs, row_of_entry, symmetric
from cluster.run import Runner
from daal.config import ClusterConfig
from daal.errors import LabelError

MAX_BACKOFFS = 4  # steps back from a giant cluster before giving up


class Dbscan:
    """`cluster.clustering.Clusterer`: DBSCAN, stepping back while there is a giant cluster."""

    def __init__(self, runner: Runner, config: ClusterConfig, eps: float | None = None) -> None:
        self.config, self.eps = config, eps
        self.join_cores = join_cores_by(runner, config.backend)

    def cluster(self, pairs: Pairs) -> Clustering:
        config, num_samples = self.config, pairs.num_samples
        rule = EpsRule.of(config, num_samples, kept=self.eps)
        # The distances computed first serve all steps, since each needs fewer of them.
        upper = distances_for(pairs, rule)
        distance = symmetric(upper)
        eps_tried: list[float] = []
        while True:
            try:
                eps = rule.eps(upper.data, num_samples)
            except LabelError as error:
                if not eps_tried:
                    raise
                raise LabelError(f"Steps back from a giant cluster led nowhere: {error}") from None
            eps_tried.append(eps)
            num_backoffs = len(eps_tried) - 1
            labels = dbscan(distance, eps, config.min_samples, self.join_cores, pairs.samples_N)
            sizes = np.bincount(labels[labels >= 0])
            if sizes.max(initial=0) <= giant_size(num_samples, config.max_cluster_share):
                break
            if num_backoffs == MAX_BACKOFFS:
                raise LabelError(
                    f"One cluster holds {sizes.max()} of {num_samples} images even after "
                    f"{num_backoffs} step(s) back, to eps={eps:.4f}; use a smaller {rule.setting}, "
                    + ("cluster.eps near 0.5 in its place, " if rule.is_share else "")
                    + "or a better source model."
                )
            rule = rule.smaller()
        if len(sizes) < config.min_clusters:
            raise LabelError(
                f"DBSCAN found {len(sizes)} cluster(s) at eps={eps:.4f}, fewer than "
                f"min_clusters={config.min_clusters}; use a larger {rule.setting}, a smaller "
                "cluster.min_samples, or more images."
            )
        note = f"A giant cluster made {num_backoffs} step(s) back necessary: eps is now {eps:.4f}"
        note += f" (p={rule.p:.3g})." if rule.is_share else "."
        return Clustering(
            labels,
            distance,
            # More distances than up to eps may be there: how many depends on how they were found.
            reach(eps),
            f"a larger {rule.setting}, or a smaller cluster.min_samples,",
            eps=eps,
            first_eps=eps_tried[0],
            p=rule.p,
            num_backoffs=num_backoffs,
            notes=(note,) if num_backoffs else (),
        )


def dbscan(
    distance: csr_array,
    eps: float,
    min_samples: int,
    join_cores: JoinCores = join_by_components,
    samples_N: npt.NDArray[np.integer] | None = None,
) -> Labels:
    """Labels (N,) int64; -1 is an outlier.

    Neighbours are at distance <= eps + 1e-6; a sample is core if it has `min_samples` of them,
    itself counted. Clusters are numbered by their lowest core index; a border sample goes to
    the smallest label among its core neighbours.
    `distance`: symmetric, absent means 1; the diagonal may be absent. With `samples_N`, its row r
    (and that of the labels) is sample samples_N[r], which clusters are numbered by.
    """
    num_samples = distance.shape[0]
    if eps + TOLERANCE >= 1:  # the pairs that aren't stored are neighbours, too
        return np.full(num_samples, 0 if num_samples >= min_samples else -1, np.int64)
    graph = neighbour_graph(distance, eps)
    is_core_N = core_flags(graph, min_samples)
    component_N = join_cores(graph, min_samples)
    samples_N = np.arange(num_samples) if samples_N is None else samples_N
    labels_N = np.full(num_samples, num_samples, np.int64)  # above every label
    labels_N[is_core_N] = numbered_by_sample(component_N[is_core_N], samples_N[is_core_N])
    rows = row_of_entry(graph)
    reaches = ~is_core_N[rows] & is_core_N[graph.indices]
    np.minimum.at(labels_N, rows[reaches], labels_N[graph.indices[reaches]])
    labels_N[labels_N == num_samples] = -1
    return labels_N


def neighbour_graph(distance: csr_array, eps: float) -> csr_array:
    """Which samples are neighbours: int8 ones, no diagonal. Only here is eps compared."""
    rows = row_of_entry(distance)
    # In fp64: eps + 1e-6 rounded to fp32 would be another number.
    is_near = (distance.data <= np.float64(eps + TOLERANCE)) & (distance.indices != rows)
    degrees_N = np.bincount(rows[is_near], minlength=distance.shape[0])
    indptr, indices = np.append(0, np.cumsum(degrees_N)), distance.indices[is_near]
    return csr_array((np.ones(len(indices), np.int8), indices, indptr), shape=distance.shape)
