"""Encodings: integers that hardly differ from the definition, and equal where they should be."""

import math

import numpy as np
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from support import in_given_order, lattice

from cluster.arrays import ONE
from cluster.encoding import Reciprocity, encode, exp_tables, exponential
from cluster.neighbours import nearest_neighbours
from cluster.refine import Search, fixed_point_scale
from cluster.run import row_blocks


def encoded(runner, features, k1, k2, dialect="zhong", num_blocks=3):
    counts = Reciprocity.of(k1, dialect)
    search = Search(max(counts.num_full, k2), fixed_point_scale(features))
    found = nearest_neighbours(runner, features, search, row_blocks(len(features), num_blocks))
    blocks = row_blocks(len(features), num_blocks)
    handles = encode(runner, features, search.scale, found, counts, k2, blocks)
    return in_given_order(runner, handles)


def test_exponential_of_what_the_tables_resolve_is_off_by_one_unit_at_most():
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 8 << 30, 20_000)
    for fixed in [0, 1, (1 << 11) - 1, 1 << 11, 1 << 22, (8 << 30) - 1, *drawn.tolist()]:
        x = fixed / 2**30
        assert abs(exponential(x, exp_tables()) - 2**32 * math.exp(-x)) <= 1


@settings(max_examples=40)
@given(
    lattice,
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["zhong", "faiss"]),
    st.integers(1, 5),
)
def test_encodings_are_the_definitions_in_integers(runner, features, k1, k2, dialect, num_blocks):
    found = encoded(runner, features, k1, k2, dialect, num_blocks)
    expected = reference.encodings(features, k1, k2, dialect)
    assert np.array_equal(found > 0, expected > 0)
    np.testing.assert_allclose(found / ONE, expected, atol=1e-8)


def test_rows_that_are_equal_on_paper_are_equal(runner):
    """Two copies and a third sample far from all others have each other only."""
    features = np.float32([[1, 0], [1, 0], [1, 0], [0, 1], [0, 0.99], [0, 0.98], [-1, -1]])
    found = encoded(runner, features, 2, 3)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_distances_beyond_the_table_are_no_neighbours_weight(runner):
    """faiss's exp(-d2) of features that aren't of length 1: far samples have hardly a weight."""
    features = np.float32([[0], [1], [1e6], [1e6 + 1], [1e6 + 2]])
    found = encoded(runner, features, 5, 1, "faiss") / ONE
    assert (found[:2, 2:] < 4e-4).all()
    assert (found[2:, :2] < 4e-4).all()
    assert (np.diagonal(found) > 0.4).all()
