"""How good pseudo-labels look, and, where identities are known, how good they are."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ClusterQuality:
    """Figures of one labelling. Shares are of all images; the last four need known pids.

    `size_histogram` counts clusters by size, in bins that double: "2-3", "4-7", ...
    `ari` and `nmi` count every outlier as a cluster of its own, so dropping images doesn't
    flatter. A pair is predicted if both images are in one cluster: `pair_precision` is the
    share of predicted pairs that are of one person, `pair_recall` the share of all pairs of
    one person that are predicted (None where there is no such pair). Images of nobody in
    particular (pid 0 or below: distractors, junk, unknown) are left out of these four.
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
    labels_N: npt.NDArray[np.integer], pids_N: npt.NDArray[np.integer] | None = None
) -> ClusterQuality:
    """Figures of pseudo-labels (-1 = outlier), against identities if these are known."""
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
        **({} if pids_N is None else _against_pids(labels_N[pids_N > 0], pids_N[pids_N > 0])),
    )


def _size_histogram(sizes: npt.NDArray[np.integer]) -> dict[str, int]:
    exponents, counts = np.unique(np.floor(np.log2(sizes)).astype(int), return_counts=True)
    names = ("1" if e == 0 else f"{2**e}-{2 ** (e + 1) - 1}" for e in exponents)
    return dict(zip(names, counts.tolist(), strict=True))


def _against_pids(
    labels_N: npt.NDArray[np.integer], pids_N: npt.NDArray[np.integer]
) -> dict[str, float | None]:
    if len(pids_N) == 0:
        return {}
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    singled_out = labels_N.astype(np.int64)
    outliers = np.flatnonzero(labels_N < 0)
    singled_out[outliers] = singled_out.max(initial=-1) + 1 + np.arange(len(outliers))
    # Outliers, each a cluster of its own, are in no predicted pair.
    both = _num_pairs(contingency_matrix(pids_N, singled_out, sparse=True).data)
    predicted = _num_pairs(np.bincount(singled_out))
    actual = _num_pairs(np.unique(pids_N, return_counts=True)[1])
    return {
        "ari": float(adjusted_rand_score(pids_N, singled_out)),
        "nmi": float(normalized_mutual_info_score(pids_N, singled_out)),
        "pair_precision": both / predicted if predicted else None,
        "pair_recall": both / actual if actual else None,
    }


def _num_pairs(sizes: npt.NDArray[np.integer]) -> int:
    sizes = sizes.astype(np.int64)
    return int((sizes * (sizes - 1) // 2).sum())
