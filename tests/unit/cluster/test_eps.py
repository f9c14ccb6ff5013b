"""eps, and the distances that it and DBSCAN look at, guessed from those of some rows."""

import re

import numpy as np
import pytest
import reference
from scipy.sparse import csr_array
from support import dense, same_bits, sparse

from cluster import eps
from cluster.arrays import ONE
from cluster.encoding import Reciprocity, encode
from cluster.eps import TOLERANCE, eps_of_pairs, estimate_eps, smallest_distances
from cluster.estimate import estimate_pseudo_labels
from cluster.jaccard import jaccard_distance
from cluster.neighbours import nearest_neighbours
from cluster.pairs import Pairs
from cluster.refine import FIXED_POINT, Search
from cluster.run import row_blocks
from daal.config import ClusterConfig
from daal.errors import LabelError

BLOCKS = row_blocks(500, 3)
CONFIG = ClusterConfig(k1=10, k2=3, p=0.02)


def test_eps_counts_absent_pairs_as_one_and_leaves_zeros_out():
    distance = sparse({(0, 1): 0.2, (1, 2): 0.4, (0, 3): 0.0}, 4)  # 5 pairs count
    assert estimate_eps(distance, 0.2) == pytest.approx(0.2)
    assert estimate_eps(distance, 0.4) == pytest.approx(0.3)
    assert estimate_eps(distance, 0.6) == pytest.approx(1.6 / 3)
    assert estimate_eps(distance, 1.0) == pytest.approx(3.6 / 5)


@pytest.mark.parametrize("p", [0.001, 0.0123, 0.3, 0.999])
def test_eps_is_that_of_the_definition(p):
    distance = jaccard_distance(reference.drawn(400, 16, 40, seed=1, noise=0.6, num_copies=8))
    assert estimate_eps(distance, p) == pytest.approx(reference.eps(dense(distance), p))


@pytest.mark.parametrize("num_samples", [2, 12, 357, 1000, 12_936])
def test_the_p_and_the_q_that_the_error_names_select_a_pair(num_samples):
    distance = sparse({(0, 1): 0.25}, num_samples)
    with pytest.raises(LabelError) as error:
        estimate_eps(distance, 1e-12)
    p, q = map(float, re.search(r"use p=(\S+) \(or q=(\S+)\) or more", str(error.value)).groups())
    assert estimate_eps(distance, p) == 0.25
    assert estimate_eps(distance, min(1.0, 2 * q / (num_samples - 1))) == 0.25


def test_eps_of_copies_only():
    with pytest.raises(LabelError, match="all their Jaccard distances are 0"):
        estimate_eps(sparse({(0, 1): 0.0}, 2), 0.5)


@pytest.fixture(scope="module")
def misleading():
    """The first sample has just as many near ones as neighbours: its distances are smallest."""
    features = reference.drawn(500, 24, 30, seed=1, noise=0.4)
    features[:11] = reference.drawn(11, 24, 1, seed=2, noise=0.1)
    return features


@pytest.fixture(scope="module")
def pairs(runner, misleading):
    counts, search = Reciprocity.of(10, "zhong"), Search(11, float(FIXED_POINT))
    neighbours = nearest_neighbours(runner, misleading, search, row_blocks(len(misleading), 3))
    handles = encode(runner, misleading, search.scale, neighbours, counts, 3, BLOCKS)
    return Pairs.of(runner, *handles, BLOCKS)


@pytest.fixture
def passes(monkeypatch):
    """`every` of each count of distances, filled while the test runs."""
    calls = []
    count = Pairs.jaccard_histogram

    def counting(pairs, every=1):
        calls.append(every)
        return count(pairs, every)

    monkeypatch.setattr(Pairs, "jaccard_histogram", counting)
    return calls


def below(upper, limit):
    """Rows, columns and distances of the stored pairs up to a limit."""
    rows = np.repeat(np.arange(upper.shape[0]), np.diff(upper.indptr))
    near = upper.data <= limit
    return rows[near], upper.indices[near], upper.data[near]


def assert_serves(pairs, upper, p):
    """eps is that of all distances, and no pair that DBSCAN looks at is missing."""
    full = pairs.jaccard_below(1.0)
    eps = eps_of_pairs(full.data, full.shape[0], p)
    assert eps_of_pairs(upper.data, full.shape[0], p) == eps
    assert same_bits(below(upper, eps + TOLERANCE), below(full, eps + TOLERANCE))


@pytest.mark.parametrize("p", [1e-4, 0.02, 0.5])
@pytest.mark.parametrize("sampled_rows", [1, 7, 200, 2000])
def test_any_number_of_sampled_rows_serves(pairs, monkeypatch, sampled_rows, p):
    monkeypatch.setattr(eps, "SAMPLED_ROWS", sampled_rows)
    upper = smallest_distances(pairs, p)
    assert_serves(pairs, upper, p)


def test_the_second_pass_gives_the_same_pseudo_labels(misleading, monkeypatch, passes):
    expected = estimate_pseudo_labels(misleading, CONFIG)
    assert passes == [1]
    monkeypatch.setattr(eps, "SAMPLED_ROWS", 1)
    found = estimate_pseudo_labels(misleading, CONFIG)
    assert passes == [1, 500, 1]
    assert found.eps == expected.eps
    assert np.array_equal(found.labels, expected.labels)
    assert np.array_equal(found.centroids, expected.centroids)


def test_pairs_just_beyond_those_selected_are_stored_too(runner, monkeypatch, passes):
    """190 pairs at 0.3 are selected, and eps is 0.3; DBSCAN takes ten at 0.3000008 for equal."""
    distances = np.repeat([0.3, 0.3000008], [190, 10])
    shared = np.round(2 * ONE * (1 - distances) / (2 - distances)).astype(np.int32)
    first = 3 * np.arange(200)  # pairs (first, first + 1) share the column `first`
    rows = np.concatenate([first, first, first + 1, first + 1])
    columns = np.concatenate([first, first + 1, first, first + 2])
    weights = np.concatenate([shared, ONE - shared, shared, ONE - shared])
    encodings = csr_array((weights, (rows, columns)), shape=(600, 600))
    pairs = Pairs.of(runner, encodings, np.arange(600), row_blocks(600, 2))
    p = 190 / (600 * 599 / 2)
    monkeypatch.setattr(eps, "SAMPLED_ROWS", 1)
    guess = eps.distance_at
    monkeypatch.setattr(
        eps,
        "distance_at",
        lambda *arguments: 0.3000004 if len(passes) == 1 else guess(*arguments),
    )
    upper = smallest_distances(pairs, p)
    assert eps_of_pairs(upper.data, 600, p) == pytest.approx(0.3, abs=1e-7)
    assert upper.nnz == 200
