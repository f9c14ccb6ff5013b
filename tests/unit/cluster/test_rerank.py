"""The sparse distance against the dense definition, and what must not change it."""

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from support import dense, lattice, same_bits

from cluster.blocks import row_blocks
from cluster.dbscan import dbscan, estimate_eps
from cluster.encoding import Reciprocity, encode
from cluster.neighbours import fixed_point_scale, nearest_neighbours
from cluster.rerank import (
    NUM_BINS,
    distance_histogram,
    distances_below,
    invert,
    jaccard_distance,
    symmetric,
)
from cluster.runner import Threads


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
    assert np.array_equal(dbscan(distance, eps, 4, "components"), golden["labels"])


@settings(max_examples=80, deadline=None)
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
            for backend in ("sklearn", "components"):
                found = dbscan(distance, eps, min_samples, backend, runner=runner)
                assert np.array_equal(found, labels)


@pytest.mark.parametrize("dialect", ["zhong", "faiss"])
@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (25, 1), (1, 1), (2, 30)])
def test_drawn_features(runner, dialect, k1, k2):
    features = reference.drawn(120, 16, 10, seed=11, num_copies=4)
    distance = jaccard_distance(features, k1, k2, dialect=dialect, runner=runner)
    np.testing.assert_allclose(
        dense(distance), reference.jaccard(features, k1, k2, dialect), atol=1e-6
    )


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


def test_any_float_type_and_layout(runner):
    features = reference.drawn(50, 8, 10, seed=1)
    expected = jaccard_distance(features, 10, 3, runner=runner)
    for same in (features.astype(np.float64), np.asfortranarray(features)):
        assert same_bits(jaccard_distance(same, 10, 3, runner=runner), expected)


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


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("num_blocks", [1, 3, 17])
def test_blocks_and_threads_change_no_bit(runner, num_blocks, num_threads):
    features = reference.drawn(300, 24, 20, seed=3, num_copies=40)
    whole = jaccard_distance(features, 10, 4, runner=runner, num_blocks=1)
    with Threads(num_threads, "cpu") as threads:
        cut = jaccard_distance(features, 10, 4, runner=threads, num_blocks=num_blocks)
    assert same_bits(whole, cut)


@pytest.mark.parametrize("dialect", ["zhong", "faiss"])
@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (5, 5), (8, 1)])
def test_shuffling_only_shuffles(runner, dialect, k1, k2):
    features = reference.drawn(300, 24, 25, seed=6)
    sq, _ = reference.ranking(features)
    assert all(len(np.unique(row)) == 300 for row in sq)  # no ties, which go by index
    order = np.random.default_rng(0).permutation(300)
    distance, shuffled = (
        dense(jaccard_distance(some, k1, k2, dialect=dialect, runner=runner))
        for some in (features, features[order])
    )
    assert np.array_equal(shuffled, distance[np.ix_(order, order)])


@pytest.fixture(scope="module")
def encodings(runner):
    features = reference.drawn(200, 16, 12, seed=10, num_copies=4)
    counts = Reciprocity.of(20, "zhong")
    return encode(
        *(runner, features, fixed_point_scale(features)),
        *(nearest_neighbours(runner, features, 21, 2), counts, 6, [(0, 200)]),
    )[0]


def test_histogram_counts_the_distances(runner, encodings):
    index = invert(runner, encodings)
    blocks = [(0, 90), (90, 200)]
    upper = distances_below(runner, encodings, index, 1.0, blocks)
    assert upper.nnz == (dense(symmetric(upper))[np.triu_indices(200, 1)] < 1).sum()
    num_zero, counts = distance_histogram(runner, encodings, index, blocks)
    assert num_zero == (upper.data <= 1e-6).sum() > 0
    expected = np.histogram(upper.data[upper.data > 1e-6], NUM_BINS, (0, 1))[0]
    assert np.array_equal(counts, expected)


@pytest.mark.parametrize("every", [2, 7, 199, 1000])
@pytest.mark.parametrize("num_blocks", [1, 3, 17])
def test_histogram_of_some_rows(runner, encodings, every, num_blocks):
    index = invert(runner, encodings)
    blocks = row_blocks(200, num_blocks)
    upper = distances_below(runner, encodings, index, 1.0, blocks)[::every]
    num_zero, counts = distance_histogram(runner, encodings, index, blocks, every)
    assert num_zero == (upper.data <= 1e-6).sum()
    expected = np.histogram(upper.data[upper.data > 1e-6], NUM_BINS, (0, 1))[0]
    assert np.array_equal(counts, expected)


@pytest.mark.parametrize(
    ("num_samples", "num_workers", "expected"),
    [(1, 8, 1), (255, 8, 1), (1024, 8, 4), (13_000, 2, 8), (1_000_000, 16, 64)],
)
def test_default_blocks_keep_workers_busy_and_are_not_tiny(num_samples, num_workers, expected):
    assert Threads(num_workers).default_num_blocks(num_samples) == expected
