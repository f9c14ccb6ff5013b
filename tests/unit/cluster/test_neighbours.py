"""Exact nearest neighbours: order, ties, copies, and what must change no bit."""

from itertools import combinations

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from support import lattice, same_bits

from cluster import products, refine
from cluster.copies import distinct_rows
from cluster.neighbours import nearest_neighbours, tournament
from cluster.refine import Groups, Search, fixed_point_scale
from cluster.run import row_blocks

FIRST_COPIES = np.array([0, 1, 0, 3, 1, 0])


def nearest(runner, features, k, num_blocks=1):
    search = Search(k, fixed_point_scale(features))
    return nearest_neighbours(runner, features, search, row_blocks(len(features), num_blocks))


def assert_is_exact(found, features, k):
    sq, order = reference.ranking(features)
    k = min(k, len(features))
    assert np.array_equal(found.indices_NK, [row[:k] for row in order])
    in_order = np.take_along_axis(sq, found.indices_NK.astype(int), 1)
    np.testing.assert_allclose(found.sq_distances_NK, in_order, rtol=1e-6)
    np.testing.assert_allclose(found.max_sq_distance_N, sq.max(1), rtol=1e-6)
    assert [array.dtype for array in found] == [np.int32, np.float32, np.float32]


@pytest.fixture
def searched_rows(monkeypatch):
    """How many rows each search of whole rows took on, filled while the test runs."""
    calls = []
    search = refine._search_rows

    def counting(*arguments):
        calls.append(len(arguments[6]))  # their distances to all samples
        search(*arguments)

    monkeypatch.setattr(refine, "_search_rows", counting)
    return calls


# ---- Order ------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_neighbours_are_exact_at_any_scale_and_offset(runner, scale):
    rng = np.random.default_rng(6)
    features = (scale * (rng.standard_normal((200, 16)) + 30)).astype(np.float32)
    assert_is_exact(nearest(runner, features, 11), features, 11)


@settings(max_examples=60)
@given(lattice, st.integers(1, 40), st.integers(1, 5))
def test_ties_and_copies_are_ordered_by_index(runner, features, k, num_blocks):
    assert_is_exact(nearest(runner, features, k, num_blocks), features, k)


@pytest.mark.parametrize("largest", [1e-6, 0.3, 1.0, 1.0000001, 1.09, 1.11, 2.2, 1e6])
def test_fixed_point_is_a_power_of_two_and_has_room(largest):
    scale = fixed_point_scale(np.float32([[largest, 0], [0, 0.01 * largest]]))
    assert np.frexp(scale)[0] == 0.5
    assert 0.5 <= largest * scale / refine.FIXED_POINT < 1.2
    if largest in (1.0, 1.0000001, 1.09):
        assert scale == refine.FIXED_POINT


# ---- Blocks and tiles -------------------------------------------------------------------


def test_tiles_change_no_bit(runner, monkeypatch):
    features = reference.drawn(300, 24, 20, seed=4, num_copies=30)
    expected = nearest(runner, features, 12)
    monkeypatch.setattr(products, "TILE", 37)
    assert same_bits(nearest(runner, features, 12), expected)


@pytest.mark.parametrize("num_blocks", range(1, 13))
def test_every_two_blocks_meet_once_and_none_twice_in_a_round(num_blocks):
    rounds = tournament(num_blocks)
    pairs = [pair for pairs in rounds for pair in pairs]
    assert sorted(pairs) == list(combinations(range(num_blocks), 2))
    assert len(rounds) == num_blocks - 1 + num_blocks % 2
    for pairs in rounds:
        players = [block for pair in pairs for block in pair]
        assert len(set(players)) == len(players)


# ---- Copies -----------------------------------------------------------------------------


def test_distinct_rows_are_the_first_of_their_like():
    rows = reference.drawn(4, 6, 4, seed=1)
    assert np.array_equal(distinct_rows(rows[FIRST_COPIES]), FIRST_COPIES)
    assert np.array_equal(distinct_rows(rows), np.arange(4))
    zeros = np.float32([[0, 1], [-0.0, 1], [0, -1], [-0.0, -0.0], [0, 0]])
    assert distinct_rows(zeros).tolist() == [0, 0, 2, 3, 3]


def test_rows_of_equal_hash_are_compared(monkeypatch):
    monkeypatch.setattr("cluster.copies._hashes", lambda features, _: np.zeros(len(features)))
    rows = reference.drawn(4, 6, 4, seed=1)
    assert distinct_rows(rows[FIRST_COPIES]).tolist() == [0, 1, 0, 3, 4, 0]


@pytest.mark.parametrize("num_copies", [2, 60, 200])
def test_few_and_many_copies(runner, num_copies):
    """60 copies fill all lists of their own: only a search of whole rows helps."""
    features = reference.drawn(200, 16, 12, seed=7)
    features[-num_copies:] = features[0]
    features[20], features[30] = features[40], features[50]
    assert_is_exact(nearest(runner, features, 11, 3), features, 11)


# ---- Certificate ------------------------------------------------------------------------


def tight_cluster():
    """60 samples within 1e-4 of each other among 140: below the rounding of any product."""
    features = reference.drawn(200, 32, 12, seed=9)
    offsets = np.random.default_rng(9).standard_normal((60, 32))
    offsets *= 5e-5 / np.linalg.norm(offsets, axis=1, keepdims=True)
    features[70:130] = features[70] + offsets
    return features


def ties():
    return np.random.default_rng(5).integers(-2, 3, (200, 4)).astype(np.float32) / 4


def test_rows_in_doubt_are_searched_again(runner, searched_rows):
    assert_is_exact(nearest(runner, tight_cluster(), 12), tight_cluster(), 12)
    assert sum(searched_rows) >= 60
    searched_rows.clear()
    assert_is_exact(nearest(runner, ties(), 12), ties(), 12)
    assert sum(searched_rows) > 0


def test_no_row_is_in_doubt_where_distances_differ(runner, searched_rows):
    features = reference.drawn(300, 24, 20, seed=1)
    assert_is_exact(nearest(runner, features, 12), features, 12)
    assert searched_rows == []


# ---- Groups -----------------------------------------------------------------------------


@settings(max_examples=60)
@given(lattice, st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 9))
def test_groups_are_searched_apart(runner, features, k, num_blocks, num_groups, seed):
    of_N = np.sort(np.random.default_rng(seed).integers(0, num_groups, len(features)))
    _, own, others = reference.camera_ranking(features, of_N)
    for same, lists in ((True, own), (False, others)):
        groups = Groups(of_N.astype(np.int32), same)
        search = Search(k, fixed_point_scale(features), groups=groups)
        found = nearest_neighbours(runner, features, search, row_blocks(len(features), num_blocks))
        k_found = min(k, len(features))
        assert np.array_equal(found.indices_NK, reference.padded(lists, k_found))
