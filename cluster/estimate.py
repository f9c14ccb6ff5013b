"""Line 4 of Algorithm 1: target features in, pseudo-labels and centroids out.

The steps are the same functions on one machine and on a Ray cluster; `map_blocks` says who
runs them (`cluster.task_graph` supplies Ray's).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array

from cluster.blocks import MapBlocks, map_threads
from cluster.dbscan import TOLERANCE, Backend, Labels, dbscan, estimate_eps, num_smallest
from cluster.neighbours import Floats, nearest_neighbours
from cluster.rerank import (
    NUM_BINS,
    distance_histogram,
    distances_below,
    neighbour_weights,
    stage_blocks,
)
from cluster.soft_labels import centroids
from daal.config import ClusterConfig
from daal.errors import LabelError

MIN_NORM = 1e-6  # below it a feature has no direction
MAX_BAD_SHARE = 0.01
MAX_OUTLIER_SHARE = 0.7  # above it the labels are used, with a warning
GIANT = 500  # no cluster up to this size is called giant in sets of 1,000 images and more
EPS_BACKOFF = 0.8


@dataclass(frozen=True)
class PseudoLabels:
    """What one estimate found.

    `labels` (N,) int64, -1 = outlier; `centroids` (K, D) float32, means of the members'
    L2-normalised features; `eps` as used, after `num_backoffs` steps back; `p` the share of
    pairs that it was found from (None if eps was given); `num_bad` rows had no usable feature
    (outliers); `num_copies` samples have an exact copy. `notes` are warnings, a sentence each.
    """

    labels: Labels
    centroids: Floats
    eps: float
    num_clusters: int
    outlier_share: float
    largest_cluster_share: float
    num_backoffs: int = 0
    p: float | None = None
    num_bad: int = 0
    num_copies: int = 0
    notes: tuple[str, ...] = ()


class Clustering(NamedTuple):
    """Labels at one eps; `p` is None if eps was given."""

    labels: Labels
    eps: float
    p: float | None
    num_backoffs: int


def estimate_pseudo_labels(
    features_ND: npt.NDArray[np.floating],
    config: ClusterConfig = ClusterConfig(),  # noqa: B008 (frozen)
    eps: float | None = None,
    *,
    map_blocks: MapBlocks = map_threads,
    num_blocks: int = 1,
    device: str | None = None,
) -> PseudoLabels:
    """Pseudo-labels of target features (N, D), real numbers of any float type.

    `eps`, if given, is used in place of the rule (an earlier iteration's). `num_blocks` cuts
    the stages for `map_blocks`; it doesn't change the result, and neither does `device`, where
    the products of features are made (default: a GPU if there is one).

    Raises LabelError if more than 1 % of the features are unusable, if p selects no pair, if
    there are fewer than `config.min_clusters` clusters, or if a giant cluster remains after
    `config.max_backoffs` steps back; ConfigError if the backend can't run here.
    """
    features, is_good = normalised_features(features_ND)
    notes = []
    num_bad = int((~is_good).sum())
    if num_bad:
        notes.append(f"{num_bad} features are not finite or zero; they are outliers now.")
    if len(features) <= config.k1:
        notes.append(
            f"{len(features)} images are no more than k1={config.k1}: all are each other's "
            "neighbours; use a smaller k1."
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    blocks = stage_blocks(len(features), num_blocks)
    num_neighbours = max(config.k1 + 1, config.k2)
    neighbours = nearest_neighbours(features, num_neighbours, map_blocks, num_blocks, device)
    num_copies = int((neighbours.sq_distances_NK[:, 1] == 0).sum())
    if num_copies:
        notes.append(f"{num_copies} images have an exact copy among the others.")
    weights = neighbour_weights(features, neighbours, config.k1, config.k2, map_blocks, blocks)
    found = cluster_weights(weights, config, eps, map_blocks, blocks)

    labels = np.full(len(features_ND), -1, np.int64)
    labels[is_good] = found.labels
    sizes = np.bincount(found.labels[found.labels >= 0])
    outlier_share = float((labels < 0).mean())
    if found.num_backoffs:
        notes.append(
            f"A giant cluster made {found.num_backoffs} step(s) back necessary: eps is now "
            f"{found.eps:.4f}" + ("." if found.p is None else f" (p={found.p:.3g}).")
        )
    if outlier_share > MAX_OUTLIER_SHARE:
        notes.append(
            f"{outlier_share:.0%} of the images are outliers; "
            "a larger q (or p), or a smaller min_samples, keeps more."
        )
    return PseudoLabels(
        labels=labels,
        centroids=centroids(features, found.labels),
        eps=found.eps,
        num_clusters=len(sizes),
        outlier_share=outlier_share,
        largest_cluster_share=int(sizes.max()) / len(labels),
        num_backoffs=found.num_backoffs,
        p=found.p,
        num_bad=num_bad,
        num_copies=num_copies,
        notes=tuple(notes),
    )


def normalised_features(
    features_ND: npt.NDArray[np.floating],
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The usable rows, float32 and of length 1, and which rows these are.

    Raises LabelError if the array isn't (N, D), if more than 1 % of the rows aren't finite or
    have no direction, or if fewer than 2 are left.
    """
    if features_ND.ndim != 2:
        raise LabelError(f"Features must be (N, D), not {features_ND.shape}.")
    features = np.ascontiguousarray(features_ND, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(features, axis=1)
    is_good = np.isfinite(norms) & (norms >= MIN_NORM)
    num_bad = int((~is_good).sum())
    if num_bad > MAX_BAD_SHARE * len(features):
        raise LabelError(
            f"{num_bad} of {len(features)} features are not finite or zero: the network that "
            "made them is broken (diverged training, half precision overflow?)."
        )
    if len(features) - num_bad < 2:
        raise LabelError(f"Pseudo-labels need at least 2 images, not {len(features) - num_bad}.")
    if num_bad:
        features, norms = features[is_good], norms[is_good]
    return features / norms[:, None], is_good


def cluster_weights(
    weights: csr_array,
    config: ClusterConfig,
    eps: float | None,
    map_blocks: MapBlocks,
    blocks: list[tuple[int, int]],
) -> Clustering:
    """eps by the configured rule and DBSCAN, stepping back while there is a giant cluster.

    Each step back halves p (q), or takes 0.8 of an eps that was given. The distances computed
    first serve all steps, since each needs fewer of them. Raises LabelError; see
    `estimate_pseudo_labels`.
    """
    num_samples = weights.shape[0]
    if eps is None and config.eps_rule == "fixed":
        eps = config.eps
    p = None if eps is not None else share_of_pairs(config, num_samples)
    cut = needed_distance(weights, p, eps, map_blocks, blocks)
    distance = distances_below(weights, cut, map_blocks, blocks)
    num_backoffs = 0
    while True:
        eps_now = eps if p is None else estimate_eps(distance, p)
        assert eps_now is not None  # either p or eps is given
        labels = map_blocks(
            "dbscan", label_samples, [()], distance, eps_now, config.min_samples, config.backend
        )[0]
        sizes = np.bincount(labels[labels >= 0])
        if sizes.max(initial=0) <= giant_size(num_samples, config.max_cluster_share):
            break
        if num_backoffs == config.max_backoffs:
            raise LabelError(
                f"One cluster holds {sizes.max()} of {num_samples} images even after "
                f"{num_backoffs} step(s) back, to eps={eps_now:.4f}; use a smaller q (or p), "
                "eps_rule=fixed with eps near 0.5, or a better source model."
            )
        num_backoffs += 1
        eps = None if eps is None else eps * EPS_BACKOFF
        p = None if p is None else p / 2
    if len(sizes) < config.min_clusters:
        raise LabelError(
            f"DBSCAN found {len(sizes)} cluster(s) at eps={eps_now:.4f}, fewer than "
            f"min_clusters={config.min_clusters}; use a larger q (or p), a smaller "
            "min_samples, or more images."
        )
    return Clustering(labels, eps_now, p, num_backoffs)


def label_samples(distance: csr_array, eps: float, min_samples: int, backend: Backend) -> Labels:
    """`dbscan` as a stage of its own: the one that may want a GPU."""
    return dbscan(distance, eps, min_samples, backend)


def share_of_pairs(config: ClusterConfig, num_samples: int) -> float:
    """The paper's p, or q pairs an image as such a share: N q of N (N - 1) / 2 pairs."""
    if config.eps_rule == "p":
        return config.p
    return min(1.0, 2 * config.q / (num_samples - 1))


def giant_size(num_samples: int, max_share: float) -> float:
    """The largest size that isn't giant: `max_share` of all, but no less than 500 images, or
    than half of a set below 1,000 (where 500 would never be reached)."""
    return max(max_share * num_samples, min(GIANT, num_samples / 2))


def needed_distance(
    weights: csr_array,
    p: float | None,
    eps: float | None,
    map_blocks: MapBlocks,
    blocks: list[tuple[int, int]],
) -> float:
    """Distances below this one are all that `estimate_eps` and `dbscan` look at.

    A first pass counts distances in bins. That makes the second pass store some ten pairs an
    image where there are thousands below 1.
    """
    margin = 2 * TOLERANCE
    if eps is not None:
        return min(1.0, eps + margin)
    assert p is not None
    num_zero, counts = distance_histogram(weights, map_blocks, blocks)
    num_selected = num_smallest(weights.shape[0], num_zero, p)
    last_bin = int(np.searchsorted(np.cumsum(counts), num_selected))
    return min(1.0, (last_bin + 1) / NUM_BINS + margin)
