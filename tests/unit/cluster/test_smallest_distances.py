"""The distances that eps and DBSCAN look at, guessed from those of some rows."""

import numpy as np
import pytest
import reference
from scipy.sparse import csr_array
from support import same_bits

from cluster import eps
from cluster.blocks import row_blocks
from cluster.arrays import ONE
from cluster.encoding import Reciprocity, encode
from cluster.eps import TOLERANCE, eps_of_pairs, smallest_distances
from cluster.estimate import estimate_pseudo_labels
from cluster.neighbours import nearest_neighbours
from cluster.refine import FIXED_POINT
from cluster.rerank import distances_below, invert
from daal.config import ClusterConfig
from daal.errors import LabelError

BLOCKS = row_blocks(500, 3)
CONFIG = ClusterConfig(k1=10, k2=3, p=0.02)


@pytest.fixture(scope="module")
def misleading():
    """The first sample has just as many near ones as neighbours: its distances are smallest."""
    features = reference.drawn(500, 24, 30, seed=1, noise=0.4)
    features[:11] = reference.drawn(11, 24, 1, seed=2, noise=0.1)
    return features


@pytest.fixture(scope="module")
def encodings(runner, misleading):
    counts = Reciprocity.of(10, "zhong")
    neighbours = nearest_neighbours(runner, misleading, 11, 3)
    return encode(runner, misleading, float(FIXED_POINT), neighbours, counts, 3, BLOCKS)[0]


@pytest.fixture
def passes(monkeypatch):
    """`every` of each count of distances, filled while the test runs."""
    calls = []
    count = eps.distance_histogram

    def counting(runner, encodings, index, blocks, every=1):
        calls.append(every)
        return count(runner, encodings, index, blocks, every)

    monkeypatch.setattr(eps, "distance_histogram", counting)
    return calls


def below(upper, limit):
    """Rows, columns and distances of the stored pairs up to a limit."""
    rows = np.repeat(np.arange(upper.shape[0]), np.diff(upper.indptr))
    near = upper.data <= limit
    return rows[near], upper.indices[near], upper.data[near]


def assert_serves(runner, encodings, upper, p):
    """eps is that of all distances, and no pair that DBSCAN looks at is missing."""
    full = distances_below(runner, encodings, invert(runner, encodings), 1.0, BLOCKS)
    eps = eps_of_pairs(full.data, full.shape[0], p)
    assert eps_of_pairs(upper.data, full.shape[0], p) == eps
    assert same_bits(below(upper, eps + TOLERANCE), below(full, eps + TOLERANCE))


@pytest.mark.parametrize("p", [1e-4, 0.004, 0.02, 0.5])
@pytest.mark.parametrize("sampled_rows", [1, 2, 7, 50, 200, 2000])
def test_any_number_of_sampled_rows_serves(runner, encodings, monkeypatch, sampled_rows, p):
    monkeypatch.setattr(eps, "SAMPLED_ROWS", sampled_rows)
    index = invert(runner, encodings)
    upper = smallest_distances(runner, encodings, index, 500, p, BLOCKS)
    assert_serves(runner, encodings, upper, p)


def test_a_good_guess_takes_one_pass_and_stores_few(runner, encodings, monkeypatch, passes):
    monkeypatch.setattr(eps, "SAMPLED_ROWS", 200)
    index = invert(runner, encodings)
    upper = smallest_distances(runner, encodings, index, 500, 0.004, BLOCKS)
    assert passes == [2]
    assert upper.nnz < 2 * 0.004 * 500 * 499 / 2
    assert_serves(runner, encodings, upper, 0.004)


def test_rows_that_mislead_take_a_second_pass(runner, encodings, monkeypatch, passes):
    monkeypatch.setattr(eps, "SAMPLED_ROWS", 1)
    index = invert(runner, encodings)
    upper = smallest_distances(runner, encodings, index, 500, 0.02, BLOCKS)
    assert passes == [500, 1]
    assert_serves(runner, encodings, upper, 0.02)


def test_the_second_pass_gives_the_same_pseudo_labels(misleading, monkeypatch, passes):
    expected = estimate_pseudo_labels(misleading, CONFIG)
    assert passes == [1]
    monkeypatch.setattr(eps, "SAMPLED_ROWS", 1)
    found = estimate_pseudo_labels(misleading, CONFIG)
    assert passes == [1, 500, 1]
    assert found.eps == expected.eps
    assert np.array_equal(found.labels, expected.labels)
    assert np.array_equal(found.centroids, expected.centroids)


@pytest.mark.parametrize("too_short", [1e-6, 0.1, 0.2])
def test_a_guess_that_falls_short_is_given_up(runner, encodings, monkeypatch, passes, too_short):
    monkeypatch.setattr(eps, "SAMPLED_ROWS", 50)
    guess = eps.distance_at
    monkeypatch.setattr(
        eps,
        "distance_at",
        lambda *arguments: too_short if len(passes) == 1 else guess(*arguments),
    )
    index = invert(runner, encodings)
    upper = smallest_distances(runner, encodings, index, 500, 0.02, BLOCKS)
    assert passes == [10, 1]
    assert_serves(runner, encodings, upper, 0.02)


def test_pairs_just_beyond_those_selected_are_stored_too(runner, monkeypatch, passes):
    """190 pairs at 0.3 are selected, and eps is 0.3; DBSCAN takes ten at 0.3000008 for equal."""
    distances = np.repeat([0.3, 0.3000008], [190, 10])
    shared = np.round(2 * ONE * (1 - distances) / (2 - distances)).astype(np.int32)
    first = 3 * np.arange(200)  # pairs (first, first + 1) share the column `first`
    rows = np.concatenate([first, first, first + 1, first + 1])
    columns = np.concatenate([first, first + 1, first, first + 2])
    weights = np.concatenate([shared, ONE - shared, shared, ONE - shared])
    encodings = csr_array((weights, (rows, columns)), shape=(600, 600))
    p = 190 / (600 * 599 / 2)
    monkeypatch.setattr(eps, "SAMPLED_ROWS", 1)
    guess = eps.distance_at
    monkeypatch.setattr(
        eps,
        "distance_at",
        lambda *arguments: 0.3000004 if len(passes) == 1 else guess(*arguments),
    )
    index = invert(runner, encodings)
    upper = smallest_distances(runner, encodings, index, 600, p, row_blocks(600, 2))
    assert eps_of_pairs(upper.data, 600, p) == pytest.approx(0.3, abs=1e-7)
    assert upper.nnz == 200


@pytest.mark.parametrize("sampled_rows", [1, 50, 2000])
def test_p_that_selects_no_pair_says_so(runner, encodings, monkeypatch, sampled_rows):
    monkeypatch.setattr(eps, "SAMPLED_ROWS", sampled_rows)
    index = invert(runner, encodings)
    with pytest.raises(LabelError, match="use p=4.01e-06"):
        smallest_distances(runner, encodings, index, 500, 1e-6, BLOCKS)
