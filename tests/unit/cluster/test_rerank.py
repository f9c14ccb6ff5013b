"""The sparse distance against the dense definition, and what must not change it."""

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cluster import neighbours, rerank
from cluster.blocks import map_threads
from cluster.dbscan import dbscan, estimate_eps


def dense(distance):
    """Absent means 1."""
    full = np.ones(distance.shape)
    rows = np.repeat(np.arange(distance.shape[0]), np.diff(distance.indptr))
    full[rows, distance.indices] = distance.data
    return full


def same_bits(a, b):
    return all(
        np.array_equal(x, y)
        for x, y in ((a.indptr, b.indptr), (a.indices, b.indices), (a.data, b.data))
    )


@pytest.mark.parametrize(
    "path", sorted(reference.GOLDEN.glob("cluster_*.npz")), ids=lambda p: p.stem
)
def test_stored_reference(path):
    golden = np.load(path)
    distance = rerank.jaccard_distance(golden["features"], int(golden["k1"]), int(golden["k2"]))
    upper = dense(distance)[np.triu_indices(len(golden["features"]), 1)]
    np.testing.assert_allclose(upper, golden["upper_triangle"], atol=1e-6)
    eps = estimate_eps(distance, float(golden["p"]))
    assert eps == pytest.approx(float(golden["eps"]), rel=1e-6)
    assert np.array_equal(dbscan(distance, eps, 4, "components"), golden["labels"])


# Quarters make distances exact in any arithmetic, so ties and copies are real ones.
lattice = st.tuples(st.integers(2, 30), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.integers(-3, 3).map(lambda v: v / 4))
)


@settings(max_examples=60, deadline=None)
@given(lattice, st.integers(1, 12), st.integers(1, 15), st.integers(1, 5))
def test_any_small_set_with_ties_and_copies(features, k1, k2, min_samples):
    distance = rerank.jaccard_distance(features, k1, k2)
    expected = reference.jaccard(features, k1, k2)
    np.testing.assert_allclose(dense(distance), expected, atol=1e-6)
    positive = expected[expected > 1e-6]
    for eps in (0.0, 0.3, float(positive.min(initial=0.5))):
        if np.abs(expected - eps - 1e-6).min() > 3e-7 and eps < 0.999:
            labels = reference.dbscan(expected, eps, min_samples)
            for backend in ("sklearn", "components"):
                assert np.array_equal(dbscan(distance, eps, min_samples, backend), labels)


def test_form_of_the_matrix():
    features = reference.drawn(120, 8, 10, seed=1, num_copies=5)
    distance = rerank.jaccard_distance(features, 10, 3)
    assert distance.dtype == np.float32
    assert distance.has_sorted_indices
    assert same_bits(distance, distance.T.tocsr())
    assert (distance.data < 1).all()
    assert (distance.diagonal() == 0).all()
    rows = np.repeat(np.arange(120), np.diff(distance.indptr))
    assert (rows == distance.indices).sum() == 120  # the diagonal is stored
    assert ((distance.data == 0) & (rows != distance.indices)).any()  # and so are other zeros


def test_max_distance_only_leaves_out():
    features = reference.drawn(150, 8, 10, seed=2)
    full = rerank.jaccard_distance(features, 10, 3)
    cut = rerank.jaccard_distance(features, 10, 3, max_distance=0.4)
    expected = np.where(dense(full) < 0.4, dense(full), 1)
    assert np.array_equal(dense(cut), expected)
    assert cut.nnz < full.nnz


@pytest.mark.parametrize("num_blocks", [3, 17])
def test_blocks_change_no_bit(num_blocks):
    features = reference.drawn(300, 24, 20, seed=3, num_copies=40)
    whole = rerank.jaccard_distance(features, 10, 4)
    assert same_bits(whole, rerank.jaccard_distance(features, 10, 4, num_blocks=num_blocks))


def test_tiles_and_the_gpus_selection_change_no_bit(monkeypatch):
    features = reference.drawn(300, 24, 20, seed=4, num_copies=30)
    expected = neighbours.nearest_neighbours(features, 12)
    monkeypatch.setattr(neighbours, "TILE", 37)
    tiled = neighbours.nearest_neighbours(features, 12)
    monkeypatch.setattr(neighbours, "_update_by_scan", neighbours._update_by_topk)
    by_topk = neighbours.nearest_neighbours(features, 12, num_blocks=2)
    for result in (tiled, by_topk):
        assert all(np.array_equal(a, b) for a, b in zip(expected, result, strict=True))


def test_shuffling_only_shuffles():
    features = reference.drawn(400, 24, 25, seed=5)
    order = np.random.default_rng(0).permutation(400)
    distance = dense(rerank.jaccard_distance(features))
    shuffled = dense(rerank.jaccard_distance(features[order]))
    np.testing.assert_allclose(shuffled, distance[np.ix_(order, order)], atol=1e-8)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_neighbours_are_exact_at_any_scale_and_offset(scale):
    rng = np.random.default_rng(6)
    features = (scale * (rng.standard_normal((200, 16)) + 30)).astype(np.float32)
    sq, order = reference.ranking(features)
    found = neighbours.nearest_neighbours(features, 11)
    assert np.array_equal(found.indices_NK, [row[:11] for row in order])
    np.testing.assert_allclose(found.max_sq_distance_N, sq.max(1), rtol=1e-6)


def test_more_copies_than_candidates():
    """40 copies fill every list of their own: only the search of whole rows orders them."""
    features = reference.drawn(200, 16, 12, seed=7, num_copies=60)
    _, order = reference.ranking(features)
    found = neighbours.nearest_neighbours(features, 11)
    assert np.array_equal(found.indices_NK, [row[:11] for row in order])


def test_training_precision_does_not_leak_in():
    features = reference.drawn(100, 16, 12, seed=8)
    torch.set_float32_matmul_precision("medium")
    try:
        neighbours.nearest_neighbours(features, 5)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_averaged_rows_sum_to_one_exactly():
    features = reference.drawn(100, 16, 12, seed=9)
    found = neighbours.nearest_neighbours(features, 21)
    weights = rerank.neighbour_weights(features, found, 20, 6, map_threads, [(0, 100)])
    assert (weights.astype(np.int64).sum(axis=1) == rerank.ONE).all()


def test_histogram_counts_the_distances():
    features = reference.drawn(200, 16, 12, seed=10, num_copies=4)
    found = neighbours.nearest_neighbours(features, 21)
    weights = rerank.neighbour_weights(features, found, 20, 6, map_threads, [(0, 200)])
    num_zero, counts = rerank.distance_histogram(weights, map_threads, [(0, 90), (90, 200)])
    upper = dense(rerank.jaccard_distance(features))[np.triu_indices(200, 1)]
    assert num_zero == (upper <= 1e-6).sum()
    expected = np.histogram(upper[(upper > 1e-6) & (upper < 1)], rerank.NUM_BINS, (0, 1))[0]
    assert np.array_equal(counts, expected)
