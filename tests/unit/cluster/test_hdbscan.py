"""HDBSCAN on sparse distances: scikit-learn's labels of the dense matrix."""

import numpy as np
import pytest
import reference
from scipy.sparse import csr_array
from sklearn.cluster import HDBSCAN
from support import dense, same_partition

from cluster import hdbscan as module
from cluster.estimate import estimate_pseudo_labels
from cluster.given_features import normalised_features
from cluster.hdbscan import hdbscan
from cluster.jaccard import jaccard_distance
from cluster.quality import agreement
from cluster.run import Threads
from daal.config import ClusterConfig
from daal.errors import ConfigError, LabelError
from daal.load_config import check_config

CONFIG = ClusterConfig(method="hdbscan", k1=10, k2=3)


@pytest.fixture(scope="module")
def features():
    return reference.drawn(500, 24, 30, seed=1, noise=0.4)


def of_dense(distance, min_samples):
    size = max(2, min_samples)
    made = HDBSCAN(size, min_samples, metric="precomputed", copy=True)
    full = dense(distance)
    np.fill_diagonal(full, 0)
    return made.fit(np.maximum(full, 1e-6)).labels_


@pytest.mark.parametrize("min_samples", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", [1, 2])
def test_labels_are_those_of_the_dense_matrix(seed, min_samples):
    drawn = reference.drawn(300, 16, 25, seed=seed, noise=0.4)
    distance = jaccard_distance(drawn, 10, 3)
    assert distance.nnz < 0.7 * 300**2
    assert same_partition(hdbscan(distance, min_samples), of_dense(distance, min_samples))


def test_components_and_samples_without_neighbours():
    """Two cliques that share no neighbour, and a sample that has none."""
    near = np.kron(np.eye(2), np.ones((5, 5)))
    rows, columns = np.nonzero(near)
    distance = csr_array((np.full(len(rows), 0.1, np.float32), (rows, columns)), shape=(11, 11))
    assert hdbscan(distance, 3).tolist() == 5 * [0] + 5 * [1] + [-1]
    assert hdbscan(csr_array((3, 3), dtype=np.float32), 4).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("num_blocks", [1, 7])
def test_the_estimate(features, num_blocks):
    with Threads(2, "cpu") as runner:
        found = estimate_pseudo_labels(features, CONFIG, runner=runner, num_blocks=num_blocks)
    distance = jaccard_distance(normalised_features(features)[0], 10, 3)
    assert same_partition(found.labels, of_dense(distance, 4))
    _, first = np.unique(found.labels[found.labels >= 0], return_index=True)
    assert (np.diff(first) > 0).all()  # numbered by their lowest sample
    assert found.num_clusters == len(found.centroids) > 20
    assert (found.eps, found.first_eps, found.p, found.num_backoffs) == (1, 1, None, 0)
    assert found.silhouette > 0
    by_dbscan = estimate_pseudo_labels(features, ClusterConfig(k1=10, k2=3, p=0.02))
    assert agreement(found.labels, by_dbscan.labels) > 0.5
    later = estimate_pseudo_labels(features, CONFIG, eps=found.first_eps)  # a later iteration's
    assert np.array_equal(later.labels, found.labels)


def test_few_clusters_and_giant_ones_name_remedies(features):
    with pytest.raises(LabelError, match="HDBSCAN found .* min_clusters=400; use a smaller"):
        estimate_pseudo_labels(features, CONFIG.model_copy(update={"min_clusters": 400}))
    two = np.repeat(np.eye(2, 8, dtype=np.float32), [260, 60], axis=0)
    two += 0.02 * np.random.default_rng(0).standard_normal(two.shape).astype(np.float32)
    config = ClusterConfig(method="hdbscan", k1=300, k2=1)
    with pytest.raises(LabelError, match=r"One cluster of HDBSCAN holds \d+ of 320 images"):
        estimate_pseudo_labels(two, config)


def test_more_distances_than_memory_holds_are_refused(features, monkeypatch):
    monkeypatch.setattr(module, "MAX_PAIRS", 2000)
    with pytest.raises(LabelError, match=r"hdbscan would hold .* use cluster\.method=dbscan"):
        estimate_pseudo_labels(features, CONFIG)


@pytest.mark.parametrize("other", [{"source_weight": 0.1}, {"eps": 0.5}, {"backend": "sklearn"}])
def test_settings_of_dbscan_alone_are_refused(other):
    with pytest.raises(ConfigError, match=r"no effect with cluster\.method=hdbscan"):
        check_config({"cluster": {"method": "hdbscan", **other}})
