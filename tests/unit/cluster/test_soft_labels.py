"""Eq. 4 and its alternatives."""

import numpy as np
import pytest
import torch

from cluster.centroids import centroids
from cluster.soft_labels import hard_label_weights, lsr_weights, soft_label_weights
from daal.errors import LabelError


def drawn(dtype=np.float32):
    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 2, 0, 1, 2, 2, -1])
    return rng.standard_normal((8, 5)).astype(dtype), labels


def test_literal_is_eq_4():
    features, labels = drawn()
    means = centroids(features, labels)
    weights = soft_label_weights(features, means, labels)
    for i in range(8):
        for k in range(3):
            sq = ((features[i].astype(float) - means[k]) ** 2).sum()
            expected = 1 / (3 * sq) + (0.9 if k == labels[i] else 0)
            assert weights[i, k] == pytest.approx(expected, rel=1e-5)


def test_normalized_rows_sum_to_one():
    features, labels = drawn()
    means = centroids(features, labels)
    weights = soft_label_weights(features, means, labels, epsilon=0.7, form="normalized")
    np.testing.assert_allclose(weights.sum(1), [1] * 7 + [0.3], rtol=1e-6)  # the last: outlier
    scaled = soft_label_weights(10 * features, 10 * means, labels, epsilon=0.7, form="normalized")
    np.testing.assert_allclose(scaled, weights, rtol=1e-5)
    literal = soft_label_weights(features, means, labels, epsilon=0.0)
    np.testing.assert_allclose(
        soft_label_weights(features, means, labels, epsilon=0.0, form="normalized"),
        literal / literal.sum(1, keepdims=True),
        rtol=1e-5,
    )


def test_torch_in_torch_out_without_gradient():
    features, labels = drawn()
    means = centroids(features, labels)
    given = torch.from_numpy(features).requires_grad_()
    weights = soft_label_weights(given, torch.from_numpy(means), torch.from_numpy(labels))
    assert isinstance(weights, torch.Tensor)
    assert not weights.requires_grad
    np.testing.assert_array_equal(weights.numpy(), soft_label_weights(features, means, labels))
    halves = soft_label_weights(given.bfloat16(), torch.from_numpy(means), torch.from_numpy(labels))
    assert halves.dtype == torch.float32


def test_a_sample_on_its_centroid_has_a_finite_weight():
    features = np.ones((2, 4), np.float32)
    weights = soft_label_weights(features, features[:1], np.array([0, 0]))
    np.testing.assert_allclose(weights, 0.9 + 1e6, rtol=1e-6)


def test_close_to_a_centroid_nothing_cancels():
    features = np.full((1, 2048), 1.0, np.float32)
    means = features + np.float32(2.0**-13)
    weights = soft_label_weights(features, means, np.array([0]), epsilon=0.0)
    assert weights[0, 0] == pytest.approx(1 / (2048 * 2.0**-26), rel=1e-5)


def test_centroids_are_plain_means():
    features, labels = drawn()
    for k, mean in enumerate(centroids(features, labels)):
        np.testing.assert_allclose(mean, features[labels == k].mean(0), rtol=1e-5)
    assert centroids(features, np.full(8, -1)).shape == (0, 5)
    with pytest.raises(LabelError, match="Cluster 1"):
        centroids(features, np.array([0, 0, 2, 2, 2, 0, 0, -1]))


def test_hard_and_smoothed_labels():
    labels = np.array([2, 0, -1])
    expected = [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(hard_label_weights(labels, 3), expected)
    smoothed = lsr_weights(torch.from_numpy(labels), 3, epsilon=0.3)
    torch.testing.assert_close(smoothed, 0.7 * torch.tensor(expected) + 0.1)
