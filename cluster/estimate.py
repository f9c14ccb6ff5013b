"""Line 4 of Algorithm 1: target features in, pseudo-labels and centroids out.

features -> neighbours -> encodings -> pairs -> clusters -> labels, centroids
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cluster.approximate import approximate_neighbours
from cluster.arrays import Floats, Labels
from cluster.camera_aware import CA_JACCARD, encode_by_camera
from cluster.camera_figures import with_known_camera
from cluster.centroids import centroids
from cluster.clustering import Clusterer, Clustering
from cluster.dbscan import Dbscan
from cluster.encoding import Reciprocity, encode
from cluster.given_features import StoredFeatures, check_given, number_matrix, unit_features
from cluster.hdbscan import Hdbscan
from cluster.neighbours import nearest_neighbours
from cluster.pairs import Pairs
from cluster.quality import graph_silhouette
from cluster.refine import FIXED_POINT, Search
from cluster.run import Runner, StageTime, blocks_for, by_stage, on_threads, row_blocks, run_one
from cluster.search_on_device import by_cuvs, check_cuvs
from cluster.source_term import SourceTerm
from daal.config import ClusterConfig
from daal.errors import LabelError

ALONE = ClusterConfig(q=10.35)  # for features by themselves: a set of any size

CLUSTERERS: dict[str, type[Dbscan] | type[Hdbscan]] = {"dbscan": Dbscan, "hdbscan": Hdbscan}
MAX_OUTLIER_SHARE = 0.7  # above it the labels are used, with a warning


@dataclass(frozen=True)
class PseudoLabels:
    """What one estimate found.

    `labels` (N,) int64, -1 = outlier; `centroids` (K, D) float32, means of the members'
    L2-normalised features (as they were clustered); `eps` as used, after `num_backoffs` steps
    back from `first_eps` (both 1 with HDBSCAN, which looks at all distances); `p` the share of
    pairs that it was found from (None if eps was given); `silhouette` of the clusters by the
    distances up to eps (`cluster.quality.graph_silhouette`),
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


@on_threads
def estimate_pseudo_labels(
    features_ND: npt.ArrayLike | StoredFeatures,
    config: ClusterConfig = ALONE,
    eps: float | None = None,
    *,
    camids_N: npt.ArrayLike | None = None,
    source_N: npt.NDArray[np.floating] | None = None,
    runner: Runner | None = None,
    num_blocks: int | None = None,
) -> PseudoLabels:
    """Pseudo-labels of target features (N, D): an array, a torch tensor or nested lists of real
    numbers of any type, or features that are read where they are needed.

    `config` is, if not given, what `daal label` uses: q=10.35. `eps`, if given, is used in place
    of the rule (an earlier iteration's). `camids_N`, the camera of each image (below 0: unknown),
    is needed by `config.camera_aware` and `camera_norm`, and gives a silhouette across cameras;
    `source_N` (`cluster.source_term.source_distance`) is needed by `source_weight`. `runner`
    (default: this machine's threads, and its GPU if it has one) and `num_blocks`, into which it
    cuts the rows, don't change the result.

    Raises LabelError if more than 1 % of the features are unusable, if p selects no pair, if
    there are fewer than `config.min_clusters` clusters, or if a giant cluster remains after
    four steps back; ConfigError if the backend can't run here, if cameras are
    needed and not given (or are more than 256), if eps isn't between 0 and 1, or if approximate
    neighbours are wanted and faiss isn't there or misses too many, or if cuVS is and isn't there.
    """
    assert runner is not None
    started, num_notes = time.time(), len(runner.notes)
    if not isinstance(features_ND, StoredFeatures):
        features_ND = number_matrix(features_ND)
    num_samples = len(features_ND)
    camids_N = None if camids_N is None else np.asarray(camids_N)
    check_given(config, num_samples, eps, camids_N, source_N)
    # What can't run here says so now, not at the end.
    clusterer: Clusterer = CLUSTERERS[config.method](runner, config, eps)
    if config.search == "cuvs":
        check_cuvs(runner)

    # Unit rows: row r is sample rows[r]. Cameras are searched apart, one after the other.
    by_camera = None
    if config.camera_aware and camids_N is not None:
        by_camera = np.argsort(camids_N, kind="stable")
    camids_to_norm = camids_N if config.camera_norm else None
    given = [runner.share(features_ND), camids_to_norm, by_camera, runner.num_workers]
    ((features, *small),) = runner.run("features", unit_features, [()], *given, num_results=3)
    rows, first_copy_R = runner.values(small)
    del features_ND, given  # on Ray, the unit rows are the only ones from here on
    notes = []
    num_bad = num_samples - len(rows)
    if num_bad:
        notes.append(f"{num_bad} features are not finite or zero; they are outliers now.")
    if len(rows) <= config.k1 and not config.camera_aware:
        notes.append(
            f"{len(rows)} images are no more than k1={config.k1}: all are each other's "
            "neighbours; use a smaller k1."
        )
    num_copies = int((np.bincount(first_copy_R)[first_copy_R] > 1).sum())
    if num_copies:
        notes.append(f"{num_copies} images have an exact copy among the others.")
    if config.min_clusters > 1 and not first_copy_R.any():  # all are copies of the first
        raise LabelError(
            f"All {len(rows)} features are identical, so that they can be 1 cluster at most: "
            "whatever made them gives the same for every image; make them again."
        )

    # Encodings, in an order of their own.
    blocks = row_blocks(len(rows), num_blocks) if num_blocks else blocks_for(runner, len(rows))
    search = Search(0, float(FIXED_POINT))  # all features are of length 1
    if config.search == "cuvs":
        search = by_cuvs(search)
    if by_camera is not None and camids_N is not None:
        encodings, order = encode_by_camera(
            runner, features, search, camids_N[rows], CA_JACCARD, blocks
        )
    else:
        reciprocity = Reciprocity.of(config.k1, config.dialect)
        search = search._replace(k=max(reciprocity.num_full, config.k2))
        if config.search == "approximate":
            neighbours, note = approximate_neighbours(runner, features, search, blocks)
            notes.append(note)
        else:
            neighbours = nearest_neighbours(runner, features, search, blocks)
        encodings, order = encode(
            runner, features, search.scale, neighbours, reciprocity, config.k2, blocks
        )
        del neighbours

    # Pairs of rows that have weight in common, and clusters of them.
    samples_R = rows[runner.values([order])[0]]
    term = None
    if config.source_weight and source_N is not None:
        term = SourceTerm(config.source_weight, source_N[samples_R].astype(np.float32))
    pairs = Pairs.of(runner, encodings, samples_R, blocks, term)
    found = clusterer.cluster(pairs)

    labels_N = np.full(num_samples, -1, np.int64)
    labels_N[samples_R] = found.labels_N
    outlier_share = float((labels_N < 0).mean())
    notes.extend(found.notes)
    if outlier_share > MAX_OUTLIER_SHARE:
        notes.append(
            f"{outlier_share:.0%} of the images are outliers; {found.keeps_more} keeps more."
        )
    camids_R = None if camids_N is None else camids_N[samples_R]
    sizes = np.bincount(found.labels_N[found.labels_N >= 0])
    means = run_one(runner, "centroids", centroids, features, labels_N[rows])
    return PseudoLabels(
        labels=labels_N,
        centroids=runner.values([means])[0],
        eps=found.eps,
        num_clusters=len(sizes),
        outlier_share=outlier_share,
        largest_cluster_share=int(sizes.max()) / len(labels_N),
        silhouette=graph_silhouette(found.distance, found.labels_N, found.reach),
        cross_camera_silhouette=silhouette_across_cameras(found, camids_R),
        first_eps=found.first_eps,
        num_backoffs=found.num_backoffs,
        p=found.p,
        num_bad=num_bad,
        num_copies=num_copies,
        notes=(*notes, *dict.fromkeys(runner.notes[num_notes:])),
        stages=by_stage(task for task in runner.times() if task.start >= started),
    )


def silhouette_across_cameras(
    found: Clustering, camids_R: npt.NDArray[np.integer] | None
) -> float | None:
    """By the distances between cameras; None without two known cameras."""
    known_R = None if camids_R is None else with_known_camera(camids_R)
    if known_R is None:
        return None
    labels_R = np.where(known_R, found.labels_N, -1)
    return graph_silhouette(found.distance, labels_R, found.reach, camids_R)
