"""How good pseudo-labels look, and, where identities are known, how good they are.

`graph_silhouette` and `agreement` need no identities: a model can be chosen by them.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from cluster.camera_figures import CameraFigures, camera_figures
from cluster.outliers import with_singletons


@dataclass(frozen=True, kw_only=True)
class ClusterQuality(CameraFigures):
    """Figures of one labelling, and those of its cameras. Shares are of all images; the last four
    need known pids.

    `size_histogram` counts clusters by size, in bins that double: "2-3", "4-7", ...
    `ari` and `nmi` count every outlier as a cluster of its own, so dropping images doesn't
    flatter. A pair is predicted if both images are in one cluster: `pair_precision` is the
    share of predicted pairs that are of one person, `pair_recall` the share of all pairs of
    one person that are predicted (None where there is no such pair). Images without
    an identity (pid 0 or below: distractors, junk, unknown) are left out of these four, which need
    at least two people.
    """

    num_images: int
    num_clusters: int
    num_outliers: int
    outlier_share: float
    largest_cluster: int
    largest_cluster_share: float
    size_histogram: dict[str, int]
    ari: float | None = None
    nmi: float | None = None
    pair_precision: float | None = None
    pair_recall: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        return asdict(self)


def cluster_quality(
    labels_N: npt.NDArray[np.integer],
    pids_N: npt.NDArray[np.integer] | None = None,
    camids_N: npt.NDArray[np.integer] | None = None,
) -> ClusterQuality:
    """Figures of pseudo-labels (-1 = outlier): of cameras (below 0 = unknown) and against
    identities, if these are known. All are (N,)."""
    sizes = np.bincount(labels_N[labels_N >= 0])
    sizes = sizes[sizes > 0]
    num_images, num_outliers = len(labels_N), int((labels_N < 0).sum())
    largest = int(sizes.max(initial=0))
    return ClusterQuality(
        num_images=num_images,
        num_clusters=len(sizes),
        num_outliers=num_outliers,
        outlier_share=num_outliers / max(num_images, 1),
        largest_cluster=largest,
        largest_cluster_share=largest / max(num_images, 1),
        size_histogram=_size_histogram(sizes),
        **({} if camids_N is None else asdict(camera_figures(labels_N, camids_N, pids_N))),
        **({} if pids_N is None else _against_pids(labels_N[pids_N > 0], pids_N[pids_N > 0])),
    )


def _size_histogram(sizes: npt.NDArray[np.integer]) -> dict[str, int]:
    exponents, counts = np.unique(np.floor(np.log2(sizes)).astype(int), return_counts=True)
    names = ("1" if e == 0 else f"{2**e}-{2 ** (e + 1) - 1}" for e in exponents)
    return dict(zip(names, counts.tolist(), strict=True))


def _against_pids(
    labels_N: npt.NDArray[np.integer], pids_N: npt.NDArray[np.integer]
) -> dict[str, float | None]:
    if len(np.unique(pids_N)) < 2:  # no other person to be taken for
        return {}
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import pair_confusion_matrix

    singled_out = _singled_out(labels_N)
    # Outliers, each a cluster of its own, are in no predicted pair.
    (_, only_predicted), (only_actual, both) = pair_confusion_matrix(pids_N, singled_out).tolist()
    return {
        "ari": float(adjusted_rand_score(pids_N, singled_out)),
        "nmi": float(normalized_mutual_info_score(pids_N, singled_out)),
        "pair_precision": both / (both + only_predicted) if both + only_predicted else None,
        "pair_recall": both / (both + only_actual) if both + only_actual else None,
    }


def agreement(labels_N: npt.NDArray[np.integer], others_N: npt.NDArray[np.integer]) -> float:
    """Adjusted Rand index of two labellings of the same images, 1 if they are the same.

    Every outlier counts as a cluster of its own, so that few images in common agree little.
    """
    from sklearn.metrics import adjusted_rand_score  # takes a second, and 130 MB

    return float(adjusted_rand_score(_singled_out(labels_N), _singled_out(others_N)))


def graph_silhouette(
    distance: csr_array,
    labels_N: npt.NDArray[np.integer],
    below: float = 1.0,
    camids_N: npt.NDArray[np.integer] | None = None,
) -> float:
    """Mean silhouette (Rousseeuw 1987) of the images in clusters, by a sparse distance: -1 to 1.

    Of each image, (b - a) / max(a, b): a is its mean distance to the others of its cluster, b the
    least mean distance to another cluster. Distances that `distance` (N, N) doesn't hold, and those
    that aren't `below`, count as 1, the largest that there is. 0 without clusters.

    With `camids_N` (N,), an image is compared with images of other cameras only, and a is 1 where
    its cluster has none: so compact clusters of one camera, which a plain silhouette takes for
    good ones, count 0 at most.
    """
    num_samples, num_clusters = len(labels_N), int(labels_N.max(initial=-1)) + 1
    inside = np.flatnonzero(labels_N >= 0)
    if num_clusters == 0:
        return 0.0
    # Without cameras, each image is compared with all but itself: as if it had its own camera.
    camids_N = np.arange(num_samples) if camids_N is None else camids_N
    _, camera_N = np.unique(camids_N, return_inverse=True)
    sizes_K = np.bincount(labels_N[inside], minlength=num_clusters)
    ones, labels_M, cameras_M = np.ones(len(inside), np.int64), labels_N[inside], camera_N[inside]
    members = csr_array((ones, (inside, labels_M)), (num_samples, num_clusters))
    by_camera = csr_array((ones, (labels_M, cameras_M)), (num_clusters, camera_N.max() + 1))
    # Nearness 1 - d is 0 where no distance is kept, so that sums over a cluster stay sparse.
    pairs = distance.tocoo()
    others = (camids_N[pairs.row] != camids_N[pairs.col]) & (pairs.data < below)
    nearness = csr_array(
        (1.0 - pairs.data[others], (pairs.row[others], pairs.col[others])), distance.shape
    )
    sums = (nearness @ members).tocoo()
    own = labels_N[sums.row] == sums.col
    num_compared = np.maximum(sizes_K[sums.col] - by_camera[sums.col, camera_N[sums.row]], 1)
    means = sums.data / num_compared
    nearest_N, within_N = np.zeros(num_samples), np.zeros(num_samples)
    np.maximum.at(nearest_N, sums.row[~own], means[~own])
    within_N[sums.row[own]] = means[own]
    a, b = 1 - within_N[inside], 1 - nearest_N[inside]
    return float(((b - a) / np.maximum(np.maximum(a, b), 1e-12)).mean())


def _singled_out(labels_N: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    return with_singletons(labels_N.astype(np.int64), np.arange(len(labels_N)))
