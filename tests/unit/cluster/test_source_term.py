"""UDAP's source term against its formula on dense matrices."""

import numpy as np
import pytest
import reference

from cluster.estimate import estimate_pseudo_labels
from cluster.given_features import normalised_features
from cluster.jaccard import jaccard_distance
from cluster.source_term import ROWS, source_distance
from daal.config import ClusterConfig
from daal.errors import ConfigError


def test_source_distance_is_the_formula():
    rng = np.random.default_rng(0)
    target, source = rng.standard_normal((ROWS + 7, 6)), 3 * rng.standard_normal((50, 6))
    target[3] = source[5] / 2  # the same direction as a source image
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (target, source)]
    sq = ((unit[0][:, None] - unit[1][None]) ** 2).sum(2).min(1)
    expected = (1 - np.exp(-sq)) / (1 - np.exp(-sq)).max()
    found = source_distance(target.astype(np.float32), source.astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.max() == 1 and found[3] < 1e-5


@pytest.mark.parametrize("rule", [{"p": 0.02}, {"eps": 0.6}])
def test_labels_are_those_of_the_dense_matrix(rule):
    features = reference.drawn(300, 24, 20, seed=4, noise=0.4)
    w = np.random.default_rng(1).random(300).astype(np.float32)
    config = ClusterConfig(k1=10, k2=3, source_weight=0.1, **rule)
    found = estimate_pseudo_labels(features, config, source_N=w)
    dense = 1 - np.zeros((300, 300))
    jaccard = jaccard_distance(normalised_features(features)[0], 10, 3).tocoo()
    dense[jaccard.row, jaccard.col] = jaccard.data
    total = 0.9 * dense + 0.1 * (w[:, None] + w)
    np.fill_diagonal(total, 0)
    eps = 0.6 if "eps" in rule else float(np.sort(total[np.triu_indices(300, 1)])[:897].mean())
    assert found.eps == pytest.approx(eps, rel=1e-5)  # 897 are 2 % of the pairs
    assert np.array_equal(found.labels, reference.dbscan(total, found.eps, 4))
    without = estimate_pseudo_labels(features, config.model_copy(update={"source_weight": 0}))
    assert not np.array_equal(found.labels, without.labels)
    assert found.num_clusters > 5


def test_the_distance_to_the_source_must_be_given():
    with pytest.raises(ConfigError, match="there is no source here"):
        estimate_pseudo_labels(np.eye(30), ClusterConfig(source_weight=0.1))
