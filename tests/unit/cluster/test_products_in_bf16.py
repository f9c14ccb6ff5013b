"""Products in bf16 choose the candidates: the neighbours are those of fp32, to the bit."""

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from support import lattice, same_bits

from cluster import bf16, choose_products, products
from cluster.estimate import estimate_pseudo_labels
from cluster.neighbours import nearest_neighbours
from cluster.refine import FIXED_POINT, Groups, Search, rounding_bound
from cluster.run import Threads, row_blocks
from daal.config import ClusterConfig

candidates_needed = choose_products.candidates_needed
has_units = bf16.bf16_gemm() is not None
native = pytest.param("native", marks=pytest.mark.skipif(not has_units, reason="no such units"))


@pytest.fixture(scope="module", params=["stand-in", native], autouse=True)
def in_bf16(request):
    """Whatever the features are like; few candidates, so that many rows are in doubt."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "stand-in":
            patch.setattr(bf16, "bf16_gemm", lambda: None)
            patch.setattr(choose_products, "bf16_gemm", lambda: "there")
        patch.setattr(choose_products, "MIN_DIMS", 1)
        patch.setattr(choose_products, "candidates_needed", lambda *_: [0])
        yield


def of_length_1(features):
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.where(norms == 0, 1, norms)).astype(np.float32)


def assert_same(runner, features, k, groups=None, num_blocks=3):
    search = Search(k, float(FIXED_POINT))
    if groups is not None:
        search = search._replace(groups=groups)
    found = nearest_neighbours(runner, features, search, row_blocks(len(features), num_blocks))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose_products, "bf16_gemm", lambda: None)
        expected = nearest_neighbours(
            runner, features, search, row_blocks(len(features), num_blocks)
        )
    assert same_bits(found, expected)


@settings(max_examples=60)
@given(lattice, st.integers(1, 40), st.integers(1, 5))
def test_ties_and_copies(runner, features, k, num_blocks):
    assert_same(runner, of_length_1(features), k, num_blocks=num_blocks)


@settings(max_examples=60)
@given(st.integers(0, 9999), st.integers(1, 40), st.integers(1, 64), st.floats(-9, 0))
def test_samples_that_lie_close_together(runner, seed, k, dims, exponent):
    """Around a few directions, at distances that bf16 tells apart, and at such that it doesn't."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((7, dims))[rng.integers(0, 7, 150)]
    features += 10**exponent * rng.standard_normal((150, dims))
    assert_same(runner, of_length_1(features), k)


@settings(max_examples=40)
@given(lattice, st.integers(1, 40), st.integers(1, 4), st.booleans(), st.integers(0, 9))
def test_groups(runner, features, k, num_groups, same, seed):
    of_N = np.sort(np.random.default_rng(seed).integers(0, num_groups, len(features)))
    assert_same(runner, of_length_1(features), k, Groups(of_N.astype(np.int32), same))


@pytest.mark.parametrize("dims", [1, 4, 256, 1024])
def test_products_are_off_by_no_more_than_the_bound(dims):
    """It is nearly reached where all coordinates lie halfway between two numbers of bf16."""
    halfway = np.full((4, dims), (1 + 2**-8 - 2**-20) / np.sqrt(dims))
    drawn = of_length_1(np.random.default_rng(dims).standard_normal((70, dims)))
    features = np.vstack([drawn, halfway, -halfway]).astype(np.float32)
    halves, operand = bf16.rounded(features)
    products_IJ = np.empty((78, 80), np.float32)[:, :78]  # rows of a larger tile
    products.multiply(halves, halves, products_IJ)
    exact = features.astype(np.float64)
    sq_norms = (exact**2).sum(1)
    off = 2 * np.abs(products_IJ - exact @ exact.T) / (sq_norms[:, None] + sq_norms)
    assert 0.9 * rounding_bound(dims, operand) < off.max() <= rounding_bound(dims, operand)


def test_samples_tell_how_many_candidates_are_needed():
    features = reference.drawn(600, 64, 30, seed=1)
    halves, operand = bf16.rounded(features)
    search = Search(12, float(FIXED_POINT), operand=operand)
    needed = candidates_needed(halves, search)
    assert len(needed) == 64
    assert 11 <= min(needed) <= np.mean(needed) < 30
    no_others = search._replace(groups=Groups(np.zeros(600, np.int32), False))
    assert candidates_needed(halves, no_others) == [0] * 64


@pytest.mark.parametrize("camera_aware", [False, True])
def test_the_whole_estimate(camera_aware, monkeypatch):
    features = reference.drawn(900, 32, 50, seed=7, noise=0.3, num_copies=20)
    camids = np.random.default_rng(0).integers(0, 4, 900)
    config = ClusterConfig(q=6, camera_aware=camera_aware)

    def estimated():
        with Threads(num_threads=2, device="cpu") as runner:
            return estimate_pseudo_labels(features, config, camids_N=camids, runner=runner)

    found = estimated()
    monkeypatch.setattr(choose_products, "bf16_gemm", lambda: None)
    expected = estimated()
    assert choose_products.STAGE in found.stages
    assert choose_products.STAGE not in expected.stages
    assert np.array_equal(found.labels, expected.labels)
    assert np.array_equal(found.centroids, expected.centroids)
    assert found.eps == expected.eps


def test_multiply__without_matrix_units(monkeypatch):
    """A node of a mixed cluster gets halves, too."""
    features = of_length_1(np.random.default_rng(5).standard_normal((40, 300)))
    halves, _ = bf16.rounded(features)
    monkeypatch.setattr(bf16, "bf16_gemm", lambda: None)
    found = np.empty((40, 40), np.float32)
    bf16.multiply(halves, halves, found)
    assert np.abs(found - features @ features.T).max() < 2**-7
