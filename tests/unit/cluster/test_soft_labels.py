"""Eq. 4 and its alternatives."""

import numpy as np
import pytest
import torch

from cluster.centroids import centroids
from cluster.soft_labels import hard_label_weights, lsr_weights, soft_label_weights
from daal.errors import LabelError


@pytest.fixture
def drawn():
    """Features, centroids and labels of eight samples, the last an outlier."""
    features = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
    labels = np.array([0, 1, 2, 0, 1, 2, 2, -1])
    return tuple(map(torch.from_numpy, (features, centroids(features, labels), labels)))


def test_literal_is_eq_4(drawn):
    features, means, labels = drawn
    weights = soft_label_weights(*drawn)
    for i in range(8):
        for k in range(3):
            sq = (features[i].double() - means[k].double()).square().sum()
            expected = 1 / (3 * sq) + (0.9 if k == labels[i] else 0)
            assert weights[i, k] == pytest.approx(float(expected), rel=1e-5)


def test_normalized_rows_sum_to_one(drawn):
    features, means, labels = drawn
    weights = soft_label_weights(*drawn, epsilon=0.7, form="normalized")
    np.testing.assert_allclose(weights.sum(1), [1] * 7 + [0.3], rtol=1e-6)  # the last: outlier
    scaled = soft_label_weights(10 * features, 10 * means, labels, epsilon=0.7, form="normalized")
    np.testing.assert_allclose(scaled, weights, rtol=1e-5)
    literal = soft_label_weights(*drawn, epsilon=0.0)
    np.testing.assert_allclose(
        soft_label_weights(*drawn, epsilon=0.0, form="normalized"),
        literal / literal.sum(1, keepdim=True),
        rtol=1e-5,
    )


def test_no_gradient_and_no_less_than_float32(drawn):
    features, means, labels = drawn
    weights = soft_label_weights(features.bfloat16().requires_grad_(), means.bfloat16(), labels)
    assert not weights.requires_grad
    assert weights.dtype == torch.float32


def test_a_sample_on_its_centroid_has_a_finite_weight():
    features = torch.ones(2, 4)
    weights = soft_label_weights(features, features[:1], torch.tensor([0, 0]))
    np.testing.assert_allclose(weights, 0.9 + 1e6, rtol=1e-6)


def test_close_to_a_centroid_nothing_cancels():
    features = torch.ones(1, 2048)
    weights = soft_label_weights(features, features + 2.0**-13, torch.tensor([0]), epsilon=0.0)
    assert float(weights[0, 0]) == pytest.approx(1 / (2048 * 2.0**-26), rel=1e-5)


def test_centroids_are_plain_means(drawn):
    features, means, labels = (tensor.numpy() for tensor in drawn)
    for k, mean in enumerate(means):
        np.testing.assert_allclose(mean, features[labels == k].mean(0), rtol=1e-5)
    assert centroids(features, np.full(8, -1)).shape == (0, 5)
    with pytest.raises(LabelError, match="Cluster 1"):
        centroids(features, np.array([0, 0, 2, 2, 2, 0, 0, -1]))


def test_hard_and_smoothed_labels():
    labels = torch.tensor([2, 0, -1])
    expected = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 0, 0]])
    assert torch.equal(hard_label_weights(labels, 3), expected)
    torch.testing.assert_close(lsr_weights(labels, 3, epsilon=0.3), 0.7 * expected + 0.1)
