"""Every way in which the way from features to pseudo-labels can go wrong."""

import re

import numpy as np
import pytest
import reference

from cluster.clustering import giant_size
from cluster.dbscan import MAX_BACKOFFS
from cluster.estimate import estimate_pseudo_labels
from daal.config import ClusterConfig
from daal.errors import ConfigError, LabelError

CONFIG = ClusterConfig(k1=10, k2=3, p=0.02)


def changed(**options):
    return CONFIG.model_copy(update=options)


@pytest.fixture(scope="module")
def features():
    return reference.drawn(500, 24, 30, seed=1, noise=0.4)


@pytest.fixture(scope="module")
def estimated(features):
    return estimate_pseudo_labels(features, CONFIG)


# ---- Features ---------------------------------------------------------------------------


def test_a_few_unusable_features_become_outliers(features, estimated):
    broken = np.insert(features, [0, 100, 250], 0, axis=0)
    broken[0, 3], broken[101] = np.nan, np.inf
    found = estimate_pseudo_labels(broken, CONFIG)
    assert found.num_bad == 3
    assert found.labels[[0, 101, 252]].tolist() == [-1, -1, -1]
    assert np.array_equal(np.delete(found.labels, [0, 101, 252]), estimated.labels)
    assert np.array_equal(found.centroids, estimated.centroids)
    assert "3 features" in found.notes[0]
    assert found.outlier_share == (found.labels == -1).mean()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0, 1e-9])
def test_up_to_one_percent_may_be_unusable(features, value):
    broken = features.copy()
    broken[:5] = value
    found = estimate_pseudo_labels(broken, CONFIG)
    assert (found.num_bad, found.labels[:5].tolist()) == (5, [-1] * 5)
    broken[5] = value
    with pytest.raises(LabelError, match="6 of 500"):
        estimate_pseudo_labels(broken, CONFIG)


@pytest.mark.parametrize("shape", [(0, 8), (1, 8), (8,), (4, 3, 2)])
def test_too_few_images_or_no_matrix(shape):
    with pytest.raises(LabelError):
        estimate_pseudo_labels(np.ones(shape, np.float32), CONFIG)


def test_copies_are_reported(features):
    copied = features.copy()
    copied[[10, 20]] = copied[0]
    copied[30] = -copied[31]
    copied[40] = 2 * copied[41]  # a copy once it is of length 1
    found = estimate_pseudo_labels(copied, CONFIG)
    assert found.num_copies == 5
    assert any(note.startswith("5 images have an exact copy") for note in found.notes)
    assert found.labels[10] == found.labels[20] == found.labels[0]
    assert found.labels[40] == found.labels[41]


def test_identical_images_are_one_cluster():
    features = np.ones((300, 8), np.float32)
    for config in (ClusterConfig(max_cluster_share=1), ClusterConfig(q=10.35)):
        with pytest.raises(LabelError, match="^All 300 features are identical"):
            estimate_pseudo_labels(features, config)
    config = ClusterConfig(max_cluster_share=1, min_clusters=1)
    found = estimate_pseudo_labels(features, config)
    assert found.num_clusters == 1
    assert found.outlier_share == 0
    assert found.num_copies == 300


@pytest.mark.parametrize("k2", [1, 3, 9])
def test_300_copies_among_others(features, k2):
    """Only the first k1 are in each other's lists, as ties go by index; a large k2 joins more."""
    copied = np.concatenate([np.repeat(features[:1], 300, axis=0), features[:120]])
    config = changed(k2=k2, p=0.004, max_cluster_share=1)
    found = estimate_pseudo_labels(copied, config)
    assert found.num_copies == 301
    distance = reference.jaccard(copied, 10, k2)
    assert found.eps == pytest.approx(reference.eps(distance, 0.004), rel=1e-6)
    assert np.array_equal(found.labels, reference.dbscan(distance, found.eps, 4))
    assert (found.labels[:10] == found.labels[0]).all()
    assert found.num_clusters >= 5


def test_fewer_images_than_k1_are_noted():
    features = reference.drawn(15, 8, 3, seed=3, noise=0.1)
    found = estimate_pseudo_labels(features, ClusterConfig(p=0.25))
    assert any("k1=20" in note for note in found.notes)
    assert found.num_clusters >= 2


@pytest.mark.parametrize("num_samples", [2, 3, 5])
def test_a_handful_of_images(num_samples):
    features = reference.drawn(num_samples, 8, 3, seed=3)
    config = ClusterConfig(min_samples=1, min_clusters=1, max_cluster_share=1)
    found = estimate_pseudo_labels(features, config, eps=0.5)
    assert (found.labels >= 0).all()
    assert any("k1=20" in note for note in found.notes)


# ---- eps --------------------------------------------------------------------------------


def test_two_images_at_distance_zero_have_no_eps():
    with pytest.raises(LabelError, match=r"2 samples have the same neighbours.*cluster\.k1"):
        estimate_pseudo_labels(np.eye(2), ClusterConfig(p=0.5))


# ---- Clusters ---------------------------------------------------------------------------


def test_no_cluster_names_remedies(features):
    with pytest.raises(
        LabelError, match=r"0 cluster.*larger eps \(by cluster\.p\).*smaller cluster"
    ):
        estimate_pseudo_labels(features, CONFIG, eps=1e-4)


def test_too_few_clusters_name_the_number_wanted(features, estimated):
    wanted = estimated.num_clusters
    assert estimate_pseudo_labels(features, changed(min_clusters=wanted)).num_clusters == wanted
    with pytest.raises(LabelError, match=f"{wanted} cluster.*min_clusters={wanted + 1}"):
        estimate_pseudo_labels(features, changed(min_clusters=wanted + 1))


@pytest.fixture(scope="module")
def blurred():
    """Features that hardly know identities: a loose eps joins nearly all of them."""
    return reference.drawn(500, 12, 30, seed=4, noise=1.0)


def test_giant_cluster_steps_back(blurred):
    found = estimate_pseudo_labels(blurred, changed(p=0.08))
    assert 1 <= found.num_backoffs <= MAX_BACKOFFS
    assert found.p == 0.08 / 2**found.num_backoffs
    assert found.first_eps > found.eps
    assert found.largest_cluster_share <= 0.5
    note = next(note for note in found.notes if "giant" in note)
    assert f"{found.num_backoffs} step(s)" in note
    assert f"{found.eps:.4f} (p={found.p:.3g})" in note
    there = estimate_pseudo_labels(blurred, changed(p=found.p))
    assert there.num_backoffs == 0
    assert there.eps == there.first_eps == found.eps
    assert np.array_equal(there.labels, found.labels)


@pytest.mark.parametrize("rule", ["given", "fixed"])
def test_giant_cluster_steps_back_from_an_eps_too(blurred, rule):
    config = CONFIG if rule == "given" else changed(p=None, eps=0.97)
    found = estimate_pseudo_labels(blurred, config, eps=0.97 if rule == "given" else None)
    assert 1 <= found.num_backoffs <= MAX_BACKOFFS
    assert found.eps == pytest.approx(0.97 * 0.8**found.num_backoffs)
    assert found.p is None
    note = next(note for note in found.notes if "giant" in note)
    assert note.endswith(f"eps is now {found.eps:.4f}.")


def test_giant_cluster_that_stays_stops(blurred, monkeypatch):
    needed = estimate_pseudo_labels(blurred, changed(p=0.08)).num_backoffs
    for max_backoffs in range(needed):
        monkeypatch.setattr("cluster.dbscan.MAX_BACKOFFS", max_backoffs)
        with pytest.raises(LabelError, match=f"One cluster holds .* after {max_backoffs} step"):
            estimate_pseudo_labels(blurred, changed(p=0.08))
    monkeypatch.setattr("cluster.dbscan.MAX_BACKOFFS", needed)
    assert estimate_pseudo_labels(blurred, changed(p=0.08)).num_clusters


def test_giant_size():
    assert giant_size(10_000, 0.2) == 2000
    assert giant_size(2000, 0.2) == 500
    assert giant_size(300, 0.2) == 150


def test_many_outliers_are_noted(features, estimated):
    found = estimate_pseudo_labels(features, CONFIG, eps=0.12)
    assert found.outlier_share > 0.7
    assert any(f"{found.outlier_share:.0%} of the images are outliers" in n for n in found.notes)
    assert estimated.outlier_share < 0.7
    assert not any("outliers" in note for note in estimated.notes)


@pytest.mark.parametrize(
    ("rule", "setting"),
    [({"p": 0.08}, "cluster.p"), ({"q": 20}, "cluster.q"), ({"eps": 0.97}, "cluster.eps")],
)
def test_remedies_name_the_setting_that_decides_on_eps(
    blurred, features, rule, setting, monkeypatch
):
    monkeypatch.setattr("cluster.dbscan.MAX_BACKOFFS", 0)
    config = ClusterConfig(k1=10, k2=3, **rule)
    with pytest.raises(LabelError, match=f"use a smaller {re.escape(setting)},"):
        estimate_pseudo_labels(blurred, config)
    with pytest.raises(LabelError, match=f"use a larger {re.escape(setting)},"):
        estimate_pseudo_labels(features, config.model_copy(update={"min_clusters": 400}))


# ---- Configuration ----------------------------------------------------------------------


@pytest.mark.parametrize("rule", [{"p": 0.5}, {"eps": 0.95}])
def test_more_pairs_than_memory_holds_are_refused(monkeypatch, rule):
    monkeypatch.setattr("cluster.eps.MAX_PAIRS", 2000)
    monkeypatch.setattr("cluster.eps.SAMPLED_ROWS", 100)
    features = reference.drawn(300, 12, 10, seed=4, noise=0.8)
    with pytest.raises(LabelError, match="q=10.35") as error:
        estimate_pseudo_labels(features, ClusterConfig(**rule))
    assert f"a smaller cluster.{'p' if 'p' in rule else 'eps'}" in str(error.value)


@pytest.mark.parametrize("eps", [-0.1, 1.5, float("nan")])
def test_eps_that_is_no_distance(eps):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        estimate_pseudo_labels(reference.drawn(50, 8, 4, seed=1), eps=eps)
