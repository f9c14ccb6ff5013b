"""From features to pseudo-labels: what the result is, and what must not change it."""

import numpy as np
import pytest
import reference
from support import same_partition

from cluster.centroids import centroids
from cluster.dbscan import dbscan
from cluster.eps import estimate_eps
from cluster.estimate import estimate_pseudo_labels
from cluster.given_features import normalised_features
from cluster.jaccard import jaccard_distance
from cluster.quality import graph_silhouette
from cluster.run import Threads
from daal.config import ClusterConfig

CONFIG = ClusterConfig(k1=10, k2=3, p=0.02)


@pytest.fixture(scope="module")
def features():
    return reference.drawn(500, 24, 30, seed=1, noise=0.4)


@pytest.fixture(scope="module")
def estimated(features):
    return estimate_pseudo_labels(features, CONFIG)


def assert_same_bits(found, expected):
    assert found.eps == expected.eps
    assert np.array_equal(found.labels, expected.labels)
    assert np.array_equal(found.centroids, expected.centroids)
    assert found.silhouette == pytest.approx(expected.silhouette, rel=1e-12)


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
    assert (estimated.num_bad, estimated.num_copies, estimated.num_backoffs) == (0, 0, 0)
    assert estimated.notes == ()
    below = eps + 2e-6
    assert estimated.silhouette == graph_silhouette(distance, estimated.labels, below) > 0


@pytest.mark.parametrize("dialect", ["zhong", "faiss"])
def test_is_what_the_definition_says(dialect):
    features = reference.drawn(150, 24, 10, seed=2, noise=0.4, num_copies=3)
    found = estimate_pseudo_labels(features, CONFIG.model_copy(update={"dialect": dialect}))
    unit, _ = normalised_features(features)
    distance = reference.jaccard(unit, 10, 3, dialect)
    assert found.eps == pytest.approx(reference.eps(distance, 0.02), rel=1e-6)
    assert np.array_equal(found.labels, reference.dbscan(distance, found.eps, 4))
    assert found.num_clusters > 5


def test_stages_are_timed(estimated):
    assert {"neighbours: products", "encoding: weights", "jaccard: distances"} <= set(
        estimated.stages
    )
    assert all(stage.wall > 0 and stage.num_tasks > 0 for stage in estimated.stages.values())


# ---- What must not change a bit ---------------------------------------------------------


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("num_blocks", [1, 3, 17])
def test_blocks_and_threads_change_no_bit(features, estimated, num_blocks, num_threads):
    with Threads(num_threads, "cpu") as runner:
        found = estimate_pseudo_labels(features, CONFIG, runner=runner, num_blocks=num_blocks)
    assert_same_bits(found, estimated)


def test_backends_change_no_bit(features, estimated):
    config = CONFIG.model_copy(update={"backend": "sklearn"})
    assert_same_bits(estimate_pseudo_labels(features, config), estimated)


def test_the_features_are_left_as_they_are(features):
    before = features.copy()
    before.flags.writeable = False  # as in an object store
    estimate_pseudo_labels(before, CONFIG)
    assert np.array_equal(before, features)


def test_scale_of_features_does_not_matter(features, estimated):
    scaled = features * np.random.default_rng(0).uniform(0.1, 10, (500, 1))  # float64
    assert np.array_equal(estimate_pseudo_labels(scaled, CONFIG).labels, estimated.labels)


@pytest.mark.parametrize("dialect", ["zhong", "faiss"])
def test_shuffling_only_shuffles(dialect):
    config = CONFIG.model_copy(update={"dialect": dialect})
    features = reference.drawn(300, 24, 25, seed=3)
    sq, _ = reference.ranking(normalised_features(features)[0])
    assert all(len(np.unique(row)) == 300 for row in sq)  # no ties, which go by index
    order = np.random.default_rng(0).permutation(300)
    found = estimate_pseudo_labels(features, config)
    shuffled = estimate_pseudo_labels(features[order], config)
    assert shuffled.eps == found.eps
    assert same_partition(shuffled.labels, found.labels[order])
    assert shuffled.silhouette == pytest.approx(found.silhouette, rel=1e-12)
    assert found.num_clusters > 5


# ---- eps --------------------------------------------------------------------------------


def test_q_is_p_of_so_many_pairs_an_image(features, estimated):
    q = 0.02 * 499 / 2
    by_q = estimate_pseudo_labels(features, CONFIG.model_copy(update={"q": q}))
    assert by_q.p == pytest.approx(0.02)
    assert_same_bits(by_q, estimated)


def test_fixed_eps(features, estimated):
    fixed = estimate_pseudo_labels(features, CONFIG.model_copy(update={"eps": estimated.eps}))
    assert fixed.p is None
    assert_same_bits(fixed, estimated)


@pytest.mark.parametrize("rule", [{"p": 0.02}, {"q": 10.35}, {"eps": 0.5}])
def test_an_eps_that_is_given_goes_before_any_rule(features, estimated, rule):
    config = CONFIG.model_copy(update=rule)
    assert_same_bits(estimate_pseudo_labels(features, config, eps=estimated.eps), estimated)
    frozen = estimate_pseudo_labels(features, config, eps=0.3)
    assert (frozen.eps, frozen.p) == (0.3, None)
    assert np.array_equal(frozen.labels, dbscan(jaccard_distance(features, 10, 3), 0.3, 4))
