"""Pseudo-labels by the reference's algorithm as it is written: dense, in float32, row by row.

Distances, ranking, k-reciprocal encodings and Jaccard distances of all pairs (Zhong et al. 2017,
sec. 3), each an N x N matrix, then scikit-learn's DBSCAN: the algorithm of the code that SpCL and
its followers share, written again. Memory: about 20 N^2 bytes.
"""

import numpy as np
import numpy.typing as npt
from sklearn.cluster import DBSCAN

Floats = npt.NDArray[np.float32]


def dense_labels(
    features_ND: Floats, eps: float, k1: int, k2: int, min_samples: int
) -> npt.NDArray[np.int64]:
    """Labels (N,) of features of length 1; -1: outlier."""
    sq_NN = np.maximum(0, 2 - 2 * features_ND @ features_ND.T)
    np.fill_diagonal(sq_NN, 0)
    ranked_NN = np.argsort(sq_NN, axis=1)
    weights_NN = encodings(sq_NN, ranked_NN, k1)
    averaged_NN = np.stack([weights_NN[nearest].mean(0) for nearest in ranked_NN[:, :k2]])
    distance_NN = jaccard(averaged_NN)
    found = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(distance_NN)
    return found.labels_.astype(np.int64)


def encodings(sq_NN: Floats, ranked_NN: npt.NDArray[np.int64], k1: int) -> Floats:
    """Gaussian weights over each sample's expanded k-reciprocal neighbours."""

    def reciprocal(i: int, k: int) -> npt.NDArray[np.int64]:
        nearest = ranked_NN[i, : k + 1]
        return nearest[(ranked_NN[nearest, : k + 1] == i).any(1)]

    weights_NN = np.zeros_like(sq_NN)
    half = [reciprocal(i, round(k1 / 2)) for i in range(len(sq_NN))]
    for i, sq_N in enumerate(sq_NN):
        core = expanded = reciprocal(i, k1)
        for q in core:
            if 3 * len(np.intersect1d(half[q], core)) > 2 * len(half[q]):
                expanded = np.append(expanded, half[q])
        expanded = np.unique(expanded)
        weights = np.exp(-sq_N[expanded] / sq_N.max())
        weights_NN[i, expanded] = weights / weights.sum()
    return weights_NN


def jaccard(weights_NN: Floats) -> Floats:
    """1 - m / (2 - m), m the sum of the smaller weights, by an inverted index."""
    who = [np.flatnonzero(column) for column in weights_NN.T]
    distance_NN = np.empty_like(weights_NN)
    for i, row in enumerate(weights_NN):
        shared_N = np.zeros_like(row)
        for g in np.flatnonzero(row):
            shared_N[who[g]] += np.minimum(row[g], weights_NN[who[g], g])
        distance_NN[i] = 1 - shared_N / (2 - shared_N)
    return np.maximum(distance_NN, 0, out=distance_NN)
