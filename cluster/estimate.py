"""Line 4 of Algorithm 1: target features in, pseudo-labels and centroids out.

    features -> neighbours -> encodings -> distances -> eps -> DBSCAN -> labels, centroids

The stages are the same functions in this process and on a Ray cluster; a `Runner` says who runs
them (`cluster.task_graph` supplies Ray's).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cluster.approximate import approximate_neighbours
from cluster.blocks import row_blocks
from cluster.camera_aware import CA_JACCARD, encode_by_camera
from cluster.camera_figures import with_known_camera
from cluster.camera_norm import standardised_by_camera
from cluster.centroids import centroids
from cluster.copies import distinct_rows
from cluster.core_samples import Labels
from cluster.dbscan import Clusterer, dbscan, find_clusterer
from cluster.encoding import Reciprocity, encode
from cluster.eps import EpsRule, distances_up_to, reach, smallest_distances
from cluster.given_features import check_cameras, normalised_features, number_matrix
from cluster.neighbours import nearest_neighbours
from cluster.products import Floats
from cluster.quality import graph_silhouette
from cluster.refine import FIXED_POINT
from cluster.rerank import distances_below, invert, symmetric
from cluster.runner import Handle, Runner, StageTime, by_stage, on_threads
from cluster.search_on_device import OF_CUVS, check_cuvs
from cluster.source_term import SourceTerm
from daal.config import ClusterConfig
from daal.errors import ConfigError, LabelError

ALONE = ClusterConfig(q=10.35)  # for features by themselves: a set of any size

MAX_OUTLIER_SHARE = 0.7  # above it the labels are used, with a warning
MAX_BACKOFFS = 4  # steps back from a giant cluster before giving up
GIANT = 500  # no cluster up to this size is called giant in sets of 1,000 images and more


@dataclass(frozen=True)
class PseudoLabels:
    """What one estimate found.

    `labels` (N,) int64, -1 = outlier; `centroids` (K, D) float32, means of the members'
    L2-normalised features (as they were clustered); `eps` as used, after `num_backoffs` steps
    back from `first_eps`; `p` the share of pairs that it was found from (None if eps was given);
    `silhouette` of the clusters by the distances up to eps (`cluster.quality.graph_silhouette`),
    and `cross_camera_silhouette` by those between cameras (None without two known cameras);
    `num_bad` rows had no usable feature (outliers); `num_copies` samples have an exact copy.
    `notes` are warnings, a sentence each.
    """

    labels: Labels
    centroids: Floats
    eps: float
    num_clusters: int
    outlier_share: float
    largest_cluster_share: float
    silhouette: float = 0.0
    cross_camera_silhouette: float | None = None
    first_eps: float | None = None
    num_backoffs: int = 0
    p: float | None = None
    num_bad: int = 0
    num_copies: int = 0
    notes: tuple[str, ...] = ()
    stages: Mapping[str, StageTime] = field(default_factory=dict)  # what each stage took


class Clustering(NamedTuple):
    """Labels at one eps, and the rule that it was found by."""

    labels: Labels
    eps: float
    first_eps: float  # before any step back
    rule: EpsRule
    num_backoffs: int
    silhouette: float
    cross_camera_silhouette: float | None


@on_threads
def estimate_pseudo_labels(
    features_ND: npt.ArrayLike,
    config: ClusterConfig = ALONE,
    eps: float | None = None,
    *,
    camids_N: npt.ArrayLike | None = None,
    source_N: npt.NDArray[np.floating] | None = None,
    runner: Runner | None = None,
    num_blocks: int | None = None,
) -> PseudoLabels:
    """Pseudo-labels of target features (N, D): an array, a torch tensor or nested lists of real
    numbers of any type.

    `config` is, if not given, what `daal label` uses: q=10.35. `eps`, if given, is used in place
    of the rule (an earlier iteration's). `camids_N`, the camera of each image (below 0: unknown),
    is needed by `config.camera_aware` and `camera_norm`, and gives a silhouette across cameras;
    `source_N`
    (`cluster.source_term.source_distance`) by `source_weight`. `runner` (default: this machine's
    threads, and its GPU if it has one) and `num_blocks`, into which it cuts the rows, don't
    change the result.

    Raises LabelError if more than 1 % of the features are unusable, if p selects no pair, if
    there are fewer than `config.min_clusters` clusters, or if a giant cluster remains after
    `MAX_BACKOFFS` steps back; ConfigError if the backend can't run here, if cameras are
    needed and not given (or are more than 256), if eps isn't between 0 and 1, or if approximate
    neighbours are wanted and faiss isn't there or misses too many, or if cuVS is and isn't there.
    """
    if eps is not None and not 0 <= eps <= 1:
        raise ConfigError(f"eps={eps} is not a distance between 0 and 1.")
    assert runner is not None
    features_ND = number_matrix(features_ND)
    camids_N = None if camids_N is None else np.asarray(camids_N)
    if config.source_weight and (source_N is None or len(source_N) != len(features_ND)):
        raise ConfigError(
            "cluster.source_weight above 0 needs the distance of every image to the source; there "
            "is no source here."
        )
    started = time.time()
    num_notes = len(runner.notes)
    clusterer = find_clusterer(runner, config.backend)  # say now, not in the end, if it isn't there
    if config.search == "cuvs":
        check_cuvs(runner)
    check_cameras(config, camids_N, len(features_ND))
    if config.camera_norm and camids_N is not None:
        features_ND = standardised_by_camera(features_ND, camids_N)
    by_camera = None
    if config.camera_aware and camids_N is not None:
        by_camera = np.argsort(camids_N, kind="stable")
    features, rows = normalised_features(features_ND, by_camera, runner.num_workers)
    num_bad = len(features_ND) - len(rows)
    shared = runner.share(features)
    features = runner.collect([shared])[0]  # on Ray, the only copy from here on
    number = np.empty_like(rows)  # of each row among the usable ones, in the given order
    number[np.argsort(rows)] = np.arange(len(rows))
    cameras = None if by_camera is None or camids_N is None else (camids_N[rows], number)
    num_blocks = num_blocks or runner.default_num_blocks(len(features))
    blocks = row_blocks(len(features), num_blocks)
    notes = []
    if num_bad:
        notes.append(f"{num_bad} features are not finite or zero; they are outliers now.")
    if len(features) <= config.k1 and not config.camera_aware:
        notes.append(
            f"{len(features)} images are no more than k1={config.k1}: all are each other's "
            "neighbours; use a smaller k1."
        )
    first_copy_N = distinct_rows(features)
    num_copies = int((np.bincount(first_copy_N)[first_copy_N] > 1).sum())
    if num_copies:
        notes.append(f"{num_copies} images have an exact copy among the others.")

    encodings, order = encode_features(
        *(runner, features, shared, config, cameras, first_copy_N, num_blocks, blocks, notes)
    )
    to_source = None if source_N is None else source_N[np.sort(rows)]
    camids = None if camids_N is None else camids_N[np.sort(rows)]
    try:
        found = cluster_encodings(
            *(runner, clusterer, encodings, order, len(features), config, eps, to_source, camids),
            *(blocks, notes),
        )
    except LabelError as error:
        if not first_copy_N.any():  # all are copies of the first
            raise LabelError(
                f"All {len(features)} features are identical, so that they can be 1 cluster at "
                "most: whatever made them gives the same for every image; make them again."
            ) from error
        raise

    labels = np.full(len(features_ND), -1, np.int64)
    labels[np.sort(rows)] = found.labels
    sizes = np.bincount(found.labels[found.labels >= 0])
    outlier_share = float((labels < 0).mean())
    if found.num_backoffs:
        notes.append(
            f"A giant cluster made {found.num_backoffs} step(s) back necessary: eps is now "
            f"{found.eps:.4f}" + (f" (p={found.rule.p:.3g})." if found.rule.is_share else ".")
        )
    if outlier_share > MAX_OUTLIER_SHARE:
        notes.append(
            f"{outlier_share:.0%} of the images are outliers; a larger {found.rule.setting}, or a "
            "smaller cluster.min_samples, keeps more."
        )
    return PseudoLabels(
        labels=labels,
        centroids=centroids(features, labels[rows]),
        eps=found.eps,
        num_clusters=len(sizes),
        outlier_share=outlier_share,
        largest_cluster_share=int(sizes.max()) / len(labels),
        silhouette=found.silhouette,
        cross_camera_silhouette=found.cross_camera_silhouette,
        first_eps=found.first_eps,
        num_backoffs=found.num_backoffs,
        p=found.rule.p,
        num_bad=num_bad,
        num_copies=num_copies,
        notes=(*notes, *dict.fromkeys(runner.notes[num_notes:])),
        stages=by_stage(task for task in runner.times() if task.start >= started),
    )


def encode_features(
    runner: Runner,
    features_ND: Floats,
    features: Handle,
    config: ClusterConfig,
    cameras: tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]] | None,
    first_copy_N: npt.NDArray[np.int64],
    num_blocks: int,
    blocks: list[tuple[int, int]],
    notes: list[str],
) -> tuple[Handle, Handle]:
    """The encodings whose overlap is the Jaccard distance, as configured, and their order.

    `cameras`: camid and number of each row, if the rows are ordered by camera.
    """
    scale = float(FIXED_POINT)  # all features are of length 1
    if cameras is not None:
        return encode_by_camera(
            *(runner, features, scale, *cameras, CA_JACCARD, num_blocks, blocks, config.products)
        )
    reciprocity = Reciprocity.of(config.k1, config.dialect)
    k = max(reciprocity.num_full, config.k2)
    if config.search == "approximate":
        neighbours, recall = approximate_neighbours(runner, features, len(features_ND), k, blocks)
        notes.append(f"Neighbours are approximate: {recall}.")
    else:
        by_cuvs = config.search == "cuvs"
        neighbours = nearest_neighbours(
            *(runner, features_ND, k, num_blocks, OF_CUVS if by_cuvs else config.products),
            *(features, first_copy_N, scale, by_cuvs),
        )
    return encode(runner, features, scale, neighbours, reciprocity, config.k2, blocks)


def cluster_encodings(
    runner: Runner,
    clusterer: Clusterer,
    encodings: Handle,
    order: Handle,
    num_samples: int,
    config: ClusterConfig,
    eps: float | None,
    source_N: npt.NDArray[np.floating] | None,
    camids_N: npt.NDArray[np.integer] | None,
    blocks: list[tuple[int, int]],
    notes: list[str],
) -> Clustering:
    """eps by the configured rule and DBSCAN, stepping back while there is a giant cluster.

    The distances computed first serve all steps, since each needs fewer of them. Raises
    LabelError; see `estimate_pseudo_labels`.
    """
    rule = EpsRule.of(config, num_samples, kept=eps)
    index = invert(runner, encodings)
    order_N = runner.collect([order])[0]
    term = None
    if config.source_weight and source_N is not None:
        term = SourceTerm(config.source_weight, source_N[order_N].astype(np.float32))
    if rule.is_share:
        upper = smallest_distances(
            *(runner, encodings, index, num_samples, rule.value, blocks, rule.setting)
        )
        if term is not None:
            below = term.reach_of_share(upper, rule.value)
            upper = distances_below(runner, encodings, index, below, blocks)
    else:
        below = reach(rule.value) if term is None else term.reach(reach(rule.value))
        upper = distances_up_to(
            *(runner, encodings, index, num_samples, rule.value, below, blocks, rule.setting)
        )
    if term is not None:
        upper = term.added_to(upper)
    distance = symmetric(upper)
    num_backoffs = 0
    while True:
        try:
            eps_now = rule.eps(upper.data, num_samples)
        except LabelError as error:
            if num_backoffs == 0:
                raise
            raise LabelError(f"Steps back from a giant cluster led nowhere: {error}") from None
        if num_backoffs == 0:
            first_eps = eps_now
        said: list[str] = []
        labels = dbscan(
            *(distance, eps_now, config.min_samples, clusterer),
            order_N=order_N,
            runner=runner,
            notes=said,
        )
        sizes = np.bincount(labels[labels >= 0])
        if sizes.max(initial=0) <= giant_size(num_samples, config.max_cluster_share):
            break
        if num_backoffs == MAX_BACKOFFS:
            raise LabelError(
                f"One cluster holds {sizes.max()} of {num_samples} images even after "
                f"{num_backoffs} step(s) back, to eps={eps_now:.4f}; use a smaller {rule.setting}, "
                + ("cluster.eps near 0.5 in its place, " if rule.is_share else "")
                + "or a better source model."
            )
        num_backoffs += 1
        rule = rule.smaller()
    if len(sizes) < config.min_clusters:
        raise LabelError(
            f"DBSCAN found {len(sizes)} cluster(s) at eps={eps_now:.4f}, fewer than "
            f"min_clusters={config.min_clusters}; use a larger {rule.setting}, a smaller "
            "cluster.min_samples, or more images."
        )
    notes.extend(said)
    # Of the distances up to eps alone: how many more there are depends on how they were found.
    silhouette = graph_silhouette(distance, labels[order_N], reach(eps_now))
    across = None
    if camids_N is not None and (known_N := with_known_camera(camids_N)) is not None:
        known = np.where(known_N, labels, -1)[order_N]
        across = graph_silhouette(distance, known, reach(eps_now), camids_N[order_N])
    return Clustering(labels, eps_now, first_eps, rule, num_backoffs, silhouette, across)


def giant_size(num_samples: int, max_share: float) -> float:
    """The largest size that isn't giant: `max_share` of all, but no less than 500 images, or
    than half of a set below 1,000 (where 500 would never be reached)."""
    return max(max_share * num_samples, min(GIANT, num_samples / 2))
