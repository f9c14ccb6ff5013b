"""The sparse distance against the dense definition, and what must not change it."""

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from support import CPU_BACKENDS, dense, lattice, same_bits

from cluster.arrays import ONE
from cluster.dbscan import dbscan
from cluster.eps import estimate_eps
from cluster.jaccard import jaccard_distance
from cluster.near_pairs import inverted_index
from cluster.pairs import pairs_below


@pytest.mark.parametrize(
    "path", sorted(reference.GOLDEN.glob("cluster_*.npz")), ids=lambda p: p.stem
)
def test_stored_reference(path):
    golden = np.load(path)
    distance = jaccard_distance(golden["features"], int(golden["k1"]), int(golden["k2"]))
    upper = dense(distance)[np.triu_indices(len(golden["features"]), 1)]
    np.testing.assert_allclose(upper, golden["upper_triangle"], atol=1e-6)
    eps = estimate_eps(distance, float(golden["p"]))
    assert eps == pytest.approx(float(golden["eps"]), rel=1e-6)
    assert np.array_equal(dbscan(distance, eps, 4), golden["labels"])


@settings(max_examples=80)
@given(
    lattice,
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 15),
    st.sampled_from(["zhong", "faiss"]),
    st.integers(1, 5),
)
def test_any_small_set_with_ties_and_copies(
    runner, features, k1, k2, min_samples, dialect, num_blocks
):
    distance = jaccard_distance(
        features, k1, k2, dialect=dialect, runner=runner, num_blocks=num_blocks
    )
    expected = reference.jaccard(features, k1, k2, dialect)
    np.testing.assert_allclose(dense(distance), expected, atol=1e-6)
    positive = expected[expected > 1e-6]
    for eps in (0.0, 0.3, float(positive.min(initial=0.5))):
        if np.abs(expected - eps - 1e-6).min() > 3e-7 and eps < 0.999:
            labels = reference.dbscan(expected, eps, min_samples)
            for backend in CPU_BACKENDS:
                found = dbscan(distance, eps, min_samples, backend)
                assert np.array_equal(found, labels)


def test_form_of_the_matrix():
    features = reference.drawn(120, 8, 10, seed=1, num_copies=5)
    distance = jaccard_distance(features, 10, 3)
    assert distance.dtype == np.float32
    assert distance.has_sorted_indices
    assert same_bits(distance, distance.T.tocsr())
    assert (distance.data < 1).all()
    assert (distance.diagonal() == 0).all()
    rows = np.repeat(np.arange(120), np.diff(distance.indptr))
    assert (rows == distance.indices).sum() == 120  # the diagonal is stored
    assert ((distance.data == 0) & (rows != distance.indices)).any()  # and so are other zeros


def test_one_sample_and_two(runner):
    assert dense(jaccard_distance(np.ones((1, 4)), runner=runner)).tolist() == [[0]]
    assert dense(jaccard_distance(np.eye(2), runner=runner)).tolist() == [[0, 0], [0, 0]]


def test_max_distance_only_leaves_out():
    features = reference.drawn(150, 8, 10, seed=2)
    full = jaccard_distance(features, 10, 3)
    for max_distance in (0.4, float(np.median(full.data))):
        cut = jaccard_distance(features, 10, 3, max_distance)
        expected = np.where(dense(full) < max_distance, dense(full), 1)
        assert np.array_equal(dense(cut), expected)
        assert cut.nnz < full.nnz


@pytest.mark.parametrize("max_distance", [0.1, 0.5, 0.8, 0.97, 1.0])
def test_samples_that_share_a_rough_sum_are_told_apart(max_distance):
    """Every 8,192nd sample does: here three, some near each other and some far."""
    rng = np.random.default_rng(5)
    shares = rng.random((20_000, 40)) * (rng.random((20_000, 40)) < 0.2)
    for start, noise in ((8192, 0.1), (16_384, 1)):
        later = shares[start : start + 3000]
        later[:] = shares[:3000] * (1 + noise * rng.random(later.shape))
    shares[:, 0] += 0.01  # no row is empty
    dense_weights = (ONE * shares / shares.sum(axis=1, keepdims=True)).astype(np.int32)
    encodings = csr_array(dense_weights)
    encodings.resize(20_000, 20_000)
    index = inverted_index(encodings)
    start, stop = 70, 90
    found = pairs_below(encodings, index, max_distance, start, stop)
    for i in range(start, stop):
        overlap = np.minimum(dense_weights[i], dense_weights).sum(axis=1, dtype=np.int64)
        both_sums = index.sums_N[i].astype(np.int64) + index.sums_N
        distance = ((both_sums - 2 * overlap) / (both_sums - overlap)).astype(np.float32)
        near = i + 1 + np.flatnonzero(distance[i + 1 :] < max_distance)
        assert len(near) >= 1
        row = found[[i - start]]
        assert np.array_equal(row.indices, near)
        assert np.array_equal(row.data, distance[near])
