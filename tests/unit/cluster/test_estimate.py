"""From features to pseudo-labels, and every way in which that can go wrong."""

import numpy as np
import pytest
import reference

from cluster.dbscan import dbscan, estimate_eps
from cluster.estimate import estimate_pseudo_labels, giant_size, normalised_features
from cluster.rerank import jaccard_distance
from cluster.soft_labels import centroids
from daal.config import ClusterConfig
from daal.errors import ConfigError, LabelError

CONFIG = ClusterConfig(k1=10, k2=3, p=0.02)


@pytest.fixture(scope="module")
def features():
    return reference.drawn(500, 24, 30, seed=1, noise=0.4)


@pytest.fixture(scope="module")
def estimated(features):
    return estimate_pseudo_labels(features, CONFIG)


def test_is_the_composition_of_its_parts(features, estimated):
    unit, _ = normalised_features(features)
    distance = jaccard_distance(unit, 10, 3)
    eps = estimate_eps(distance, 0.02)
    assert estimated.eps == eps  # found among far fewer distances, and yet the same bits
    assert np.array_equal(estimated.labels, dbscan(distance, eps, 4))
    assert np.array_equal(estimated.centroids, centroids(unit, estimated.labels))
    assert estimated.num_clusters == len(estimated.centroids) >= 10
    assert estimated.outlier_share == (estimated.labels == -1).mean()
    assert estimated.largest_cluster_share == np.bincount(estimated.labels + 1)[1:].max() / 500


def test_scale_of_features_does_not_matter(features, estimated):
    scaled = features * np.random.default_rng(0).uniform(0.1, 10, (500, 1))  # float64
    assert np.array_equal(estimate_pseudo_labels(scaled, CONFIG).labels, estimated.labels)


def test_shuffling_does_not_matter(features, estimated):
    order = np.random.default_rng(0).permutation(500)
    shuffled = estimate_pseudo_labels(features[order], CONFIG).labels
    together = estimated.labels[order][:, None] == estimated.labels[order][None, :]
    assert np.array_equal(shuffled[:, None] == shuffled[None, :], together)


@pytest.mark.parametrize("num_blocks", [3, 17])
def test_blocks_do_not_matter(features, estimated, num_blocks):
    blocked = estimate_pseudo_labels(features, CONFIG, num_blocks=num_blocks)
    assert blocked.eps == estimated.eps
    assert np.array_equal(blocked.labels, estimated.labels)
    assert np.array_equal(blocked.centroids, estimated.centroids)


def test_eps_rules(features, estimated):
    pairs_an_image = 0.02 * 499 / 2
    by_q = estimate_pseudo_labels(
        features, CONFIG.model_copy(update={"eps_rule": "q", "q": pairs_an_image})
    )
    assert by_q.p == pytest.approx(0.02)
    assert by_q.eps == pytest.approx(estimated.eps)
    fixed = estimate_pseudo_labels(
        features, CONFIG.model_copy(update={"eps_rule": "fixed", "eps": estimated.eps})
    )
    assert fixed.p is None
    assert np.array_equal(fixed.labels, estimated.labels)
    frozen = estimate_pseudo_labels(features, CONFIG, eps=0.3)
    assert frozen.eps == 0.3


def test_a_few_unusable_features_become_outliers(features, estimated):
    broken = np.insert(features, [0, 100, 250], 0, axis=0)
    broken[0, 3], broken[101] = np.nan, np.inf
    found = estimate_pseudo_labels(broken, CONFIG)
    assert found.num_bad == 3
    assert found.labels[[0, 101, 252]].tolist() == [-1, -1, -1]
    assert np.array_equal(np.delete(found.labels, [0, 101, 252]), estimated.labels)
    assert "3 features" in found.notes[0]


def test_many_unusable_features_stop(features):
    broken = features.copy()
    broken[:6] = np.nan
    with pytest.raises(LabelError, match="6 of 500"):
        estimate_pseudo_labels(broken, CONFIG)


@pytest.mark.parametrize("shape", [(0, 8), (1, 8), (8,)])
def test_too_few_images(shape):
    with pytest.raises(LabelError):
        estimate_pseudo_labels(np.ones(shape, np.float32), CONFIG)


def test_p_that_selects_nothing_names_one_that_does():
    with pytest.raises(LabelError, match="use p="):
        estimate_pseudo_labels(reference.drawn(20, 8, 4, seed=2), ClusterConfig())


def test_no_cluster_names_remedies(features):
    with pytest.raises(LabelError, match="larger q"):
        estimate_pseudo_labels(features, CONFIG, eps=1e-4)


def test_identical_images_are_one_cluster():
    features = np.ones((300, 8), np.float32)
    with pytest.raises(LabelError, match="1 cluster"):
        estimate_pseudo_labels(features, ClusterConfig(max_cluster_share=1))
    config = ClusterConfig(max_cluster_share=1, min_clusters=1)
    found = estimate_pseudo_labels(features, config)
    assert found.num_clusters == 1
    assert found.outlier_share == 0
    assert found.num_copies == 300


@pytest.fixture(scope="module")
def blurred():
    """Features that hardly know identities: a loose eps joins nearly all of them."""
    return reference.drawn(500, 12, 30, seed=4, noise=1.0)


def test_giant_cluster_steps_back(blurred):
    found = estimate_pseudo_labels(blurred, CONFIG.model_copy(update={"p": 0.08}))
    assert found.num_backoffs >= 1
    assert found.p == 0.08 / 2**found.num_backoffs
    assert found.largest_cluster_share <= 0.5
    assert any("giant" in note for note in found.notes)
    frozen = estimate_pseudo_labels(blurred, CONFIG, eps=0.97)
    assert frozen.num_backoffs >= 1
    assert frozen.eps == pytest.approx(0.97 * 0.8**frozen.num_backoffs)


def test_giant_cluster_that_stays_stops(blurred):
    config = CONFIG.model_copy(update={"p": 0.08, "max_backoffs": 0})
    with pytest.raises(LabelError, match="One cluster holds"):
        estimate_pseudo_labels(blurred, config)


def test_giant_size():
    assert giant_size(10_000, 0.2) == 2000
    assert giant_size(2000, 0.2) == 500
    assert giant_size(300, 0.2) == 150


def test_many_outliers_are_noted(features):
    found = estimate_pseudo_labels(features, CONFIG, eps=0.12)
    assert found.outlier_share > 0.7
    assert any("outliers" in note for note in found.notes)


def test_fewer_images_than_k1_are_noted():
    features = reference.drawn(15, 8, 3, seed=3, noise=0.1)
    found = estimate_pseudo_labels(features, ClusterConfig(p=0.25))
    assert any("k1=20" in note for note in found.notes)


def test_cuml_needs_a_gpu(features, monkeypatch):
    monkeypatch.setattr("cluster.dbscan.cuml_available", lambda: False)
    with pytest.raises(ConfigError, match="cuml"):
        estimate_pseudo_labels(features, CONFIG.model_copy(update={"backend": "cuml"}))
