"""Figures of a labelling, counted by hand."""

import json

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.metrics import silhouette_score

from cluster.quality import agreement, cluster_quality, graph_silhouette

LABELS = np.array([0, 0, 0, 1, 1, -1, -1, 0])
PIDS = np.array([7, 7, 8, 8, 8, 8, 9, -1])


def test_without_identities():
    quality = cluster_quality(LABELS)
    assert quality.num_clusters == 2
    assert quality.num_outliers == 2
    assert quality.outlier_share == 0.25
    assert quality.largest_cluster == 4
    assert quality.largest_cluster_share == 0.5
    assert quality.size_histogram == {"2-3": 1, "4-7": 1}
    assert quality.ari is None
    json.dumps(quality.as_dict())


def test_one_identity__is_nothing_to_be_judged_by():
    quality = cluster_quality(LABELS, np.full(len(LABELS), 20240131))
    assert quality.ari is None and quality.nmi is None
    assert quality.pair_precision is None and quality.pair_recall is None


def test_pairs_against_identities():
    quality = cluster_quality(LABELS, PIDS)
    # Clustered pairs: 3 + 1, of which (0, 1) and (3, 4) are right. Pairs of one person: 1 + 6.
    assert quality.pair_precision == pytest.approx(2 / 4)
    assert quality.pair_recall == pytest.approx(2 / 7)
    json.dumps(quality.as_dict())


def test_images_without_identity_are_left_out():
    # Distractors (0), junk (-1) and unknown (-2) lie in clusters of their own, in those of others
    # and among the outliers; all but the counts of images and clusters is as without them.
    unnamed = np.array([0, 0, 0, 0, -1, -2])
    labels = np.append(LABELS, [2, 2, 0, -1, 2, -1])
    quality = cluster_quality(labels, np.append(PIDS, unnamed))
    without = cluster_quality(LABELS, PIDS)
    assert (quality.num_images, quality.num_clusters) == (14, 3)
    for name in ("ari", "nmi", "pair_precision", "pair_recall"):
        assert getattr(quality, name) == getattr(without, name)
    assert cluster_quality(labels[8:], unnamed).ari is None


def test_nothing_but_outliers():
    quality = cluster_quality(np.full(5, -1), np.array([1, 1, 2, 3, 3]))
    assert (quality.num_clusters, quality.outlier_share, quality.size_histogram) == (0, 1, {})
    assert (quality.pair_precision, quality.pair_recall) == (None, 0)
    assert cluster_quality(np.full(2, -1), np.array([-1, -1])).ari is None


def test_agreement_counts_outliers_as_clusters_of_their_own():
    labels = np.array([0, 0, 1, 1, -1, -1])
    assert agreement(labels, np.array([5, 5, 2, 2, -1, -1])) == pytest.approx(1)
    assert agreement(labels, np.array([0, 0, 1, 1, 2, 2])) < 1
    assert abs(agreement(labels, np.arange(6))) < 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_graph_silhouette_equals_sklearn_on_the_dense_matrix(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 40)
    dense = np.where(labels[:, None] == labels, 0.3, 0.8) + 0.3 * rng.random((40, 40))
    dense = np.minimum((dense + dense.T) / 2, 1)
    np.fill_diagonal(dense, 0)
    kept = np.where(dense < 0.9, dense, 0)
    dense[kept == 0] = 1  # what isn't kept counts as 1
    np.fill_diagonal(dense, 0)
    expected = silhouette_score(dense, labels, metric="precomputed")
    assert graph_silhouette(csr_array(kept), labels) == pytest.approx(expected)


def test_graph_silhouette_leaves_outliers_out_but_not_their_absence():
    distance = csr_array(np.array([[0, 0.2, 0.4], [0.2, 0, 0], [0.4, 0, 0]]))
    # Of the two in the cluster: a = 0.2, and no other cluster is near.
    assert graph_silhouette(distance, np.array([0, 0, -1])) == pytest.approx(0.8)
    assert graph_silhouette(distance, np.full(3, -1)) == 0
