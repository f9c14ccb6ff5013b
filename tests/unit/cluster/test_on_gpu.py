"""The tensor operations of the GPU, run on the CPU, against its kernels: bit for bit."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import lattice, same_bits

from cluster import encoding, on_gpu, products, rerank, sparse_tensors
from cluster.blocks import row_blocks
from cluster.camera_aware import camera_weights
from cluster.encoding import Reciprocity
from cluster.estimate import estimate_pseudo_labels
from cluster.locality import locality_order, renumbered
from cluster.neighbours import (
    Groups,
    Neighbours,
    _refine_rows,
    fixed_point_scale,
    nearest_in_groups,
    nearest_neighbours,
    rounding_bound,
)
from cluster.products import meet, meet_itself, no_candidates
from cluster.runner import Threads
from daal.config import ClusterConfig

SETS = {
    "plain": (reference.drawn(300, 24, 20, seed=1), 20, 6),
    "copies": (reference.drawn(200, 16, 12, seed=2, num_copies=40), 10, 3),
    "no more than k1": (reference.drawn(15, 8, 4, seed=3), 20, 6),
    "one person": (np.ones((40, 8), np.float32), 10, 3),
    "far apart": (1e6 * reference.drawn(100, 8, 9, seed=4) + np.float32(5e6), 12, 1),
}


@pytest.fixture(params=SETS.values(), ids=SETS)
def drawn(request):
    return request.param


@pytest.fixture(params=["zhong", "faiss"])
def dialect(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["whole", "pieces"], autouse=True)
def in_pieces(request, monkeypatch):
    """All rows at once, and few."""
    if request.param:
        for module in (on_gpu, sparse_tensors):
            monkeypatch.setattr(module, "MAX_BYTES", 20_000)
        monkeypatch.setattr(sparse_tensors, "ENTRIES", 1000)
        monkeypatch.setattr(sparse_tensors, "ENTRIES_ON_GPU", 1000)


# ---- Neighbours -------------------------------------------------------------------------


def refined(refine, features, scale, candidates, k, precision, itself_first, *device):
    num_rows = len(candidates.near_RC)
    found = Neighbours(
        np.full((num_rows, k), -1, np.int32),
        np.zeros((num_rows, k), np.float32),
        np.zeros(num_rows, np.float32),
    )
    certified = np.zeros(num_rows, np.bool_)
    rounding = rounding_bound(precision, features.shape[1])
    refine(features, scale, rounding, itself_first, *candidates, *found, certified, *device)
    return *found, certified


def assert_refined_alike(features, candidates, k, precision="fp32", itself_first=True):
    arguments = (features, fixed_point_scale(features), candidates, k, precision, itself_first)
    expected = refined(_refine_rows, *arguments)
    found = refined(on_gpu.refine_rows, *arguments, "cpu")
    is_certified = expected[-1]
    assert np.array_equal(found[-1], is_certified)
    assert same_bits([a[is_certified] for a in found], [a[is_certified] for a in expected])
    return is_certified


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_refined_rows(drawn, precision):
    features, k, _ = drawn
    for start, stop in row_blocks(len(features), 3):
        for k_here in (1, min(k, len(features))):
            num_near = min(k_here + products.SLACK[precision], len(features))
            own = meet_itself(features, precision, "cpu", (start, stop), num_near)
            assert_refined_alike(features, own, k_here, precision)


def test_refined_rows_of_other_groups():
    features = reference.drawn(120, 16, 12, seed=5)
    lists = [no_candidates(block, 16) for block in ((0, 60), (60, 120))]
    for own in meet(features, "fp32", "cpu", *lists):
        is_certified = assert_refined_alike(features, own, 8, itself_first=False)
        assert is_certified.any()
    assert_refined_alike(features, lists[0], 8, itself_first=False)  # nobody at all


@settings(max_examples=40)
@given(lattice, st.integers(1, 12))
def test_refined_rows_with_ties(features, k):
    k = min(k, len(features))
    own = meet_itself(features, "fp32", "cpu", (0, len(features)), len(features))
    assert_refined_alike(features, own, k)


def test_selection_finds_the_neighbours_of_the_scan(drawn, runner, monkeypatch):
    features, k, _ = drawn
    expected = runner.collect([nearest_neighbours(runner, features, k, 3)])[0]
    select = products._select_pair
    monkeypatch.setattr(
        products,
        "_scan_pair",
        lambda features, precision, *pair: select(features, precision, "cpu", *pair),
    )
    for precision in ("fp32", "tf32", "bf16"):
        for tile in (products.TILE_ON_GPU, 29):
            monkeypatch.setattr(products, "TILE_ON_GPU", tile)
            found = nearest_neighbours(runner, features, k, 3, precision)
            assert same_bits(runner.collect([found])[0], expected)


def test_each_product_has_its_own_precision():
    """Though the setting is the whole process's, and tasks of several stages run side by side."""

    def seen(precision):
        with products.matmul_precision(precision):
            time.sleep(0.001)
            return torch.get_float32_matmul_precision()

    wanted = ["tf32", "fp32"] * 20
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(seen, wanted))
    assert found == [{"tf32": "high", "fp32": "highest"}[precision] for precision in wanted]
    assert torch.get_float32_matmul_precision() == "highest"


# ---- Encodings and distances ------------------------------------------------------------


class Stages:
    """What each stage works on, by the kernels."""

    def __init__(self, features, k1, k2, dialect, runner):
        self.features, self.scale = features, fixed_point_scale(features)
        self.blocks = row_blocks(len(features), 3)
        self.counts = Reciprocity.of(k1, dialect)
        k = max(self.counts.num_full, k2)
        found = runner.collect([nearest_neighbours(runner, features, k, 1)])[0]
        self.order = locality_order(found)
        self.neighbours = renumbered(found, self.order)
        every = ("cpu", 0, len(features))
        self.flags = encoding.reciprocal_flags(self.neighbours, self.counts, *every)
        self.weighted = (self.features, self.scale, self.order, self.neighbours, self.flags)
        self.raw = encoding.weights(*self.weighted, self.counts, *every)
        self.averaged = self.neighbours.indices_NK[:, :k2]
        self.encodings = encoding.average_rows(self.raw, self.averaged, "cpu")
        self.index = rerank.inverted_index(self.encodings, "cpu")


@pytest.fixture
def stages(drawn, dialect, runner):
    return Stages(*drawn, dialect, runner)


def test_reciprocal_flags(stages):
    for start, stop in stages.blocks:
        found = on_gpu.reciprocal_flags(stages.neighbours, stages.counts, start, stop, "cpu")
        assert found.dtype == np.uint8
        assert np.array_equal(found, stages.flags[start:stop])


def test_weights(stages):
    for start, stop in stages.blocks:
        expected = encoding.weights(*stages.weighted, stages.counts, "cpu", start, stop)
        found = on_gpu.weights(*stages.weighted, stages.counts, start, stop, "cpu")
        assert same_bits(found, expected)
        assert found.has_sorted_indices


def test_averages(stages):
    for start, stop in stages.blocks:
        averaged = stages.averaged[start:stop].copy()
        for num_missing in (0, 1):
            averaged[::2, 1 : 1 + num_missing] = -1
            expected = encoding.average_rows(stages.raw, averaged, "cpu")
            assert same_bits(on_gpu.average_rows(stages.raw, averaged, "cpu"), expected)


def test_inverted_index(stages):
    assert same_bits(on_gpu.inverted_index(stages.encodings, "cpu"), stages.index)


@pytest.mark.parametrize("max_distance", [1.0, 0.5, 1e-6])
def test_pairs_below(stages, max_distance):
    arguments = (stages.encodings, stages.index, max_distance)
    for start, stop in stages.blocks:
        expected = rerank.pairs_below(*arguments, "cpu", start, stop)
        assert same_bits(on_gpu.pairs_below(*arguments, start, stop, "cpu"), expected)


@pytest.mark.parametrize("every", [1, 7, 1000])
def test_histogram(stages, every):
    arguments = (stages.encodings, stages.index, every)
    for start, stop in stages.blocks:
        expected = rerank.histogram_block(*arguments, "cpu", start, stop)
        found = on_gpu.histogram_block(*arguments, start, stop, "cpu")
        assert found.dtype == np.int64
        assert np.array_equal(found, expected)


@settings(max_examples=40)
@given(lattice, st.integers(1, 12), st.integers(1, 5), st.sampled_from(["zhong", "faiss"]))
def test_any_small_set(runner, features, k1, k2, dialect):
    stages = Stages(features, k1, k2, dialect, runner)
    every = (0, len(features), "cpu")
    flags = on_gpu.reciprocal_flags(stages.neighbours, stages.counts, *every)
    assert np.array_equal(flags, stages.flags)
    assert same_bits(on_gpu.weights(*stages.weighted, stages.counts, *every), stages.raw)
    assert same_bits(on_gpu.average_rows(stages.raw, stages.averaged, "cpu"), stages.encodings)
    arguments = (stages.encodings, stages.index, 1.0)
    expected = rerank.pairs_below(*arguments, "cpu", 0, len(features))
    assert same_bits(on_gpu.pairs_below(*arguments, *every), expected)


def test_camera_weights(runner):
    features = reference.drawn(150, 16, 12, seed=6, num_copies=10)
    camera_N = np.sort(np.random.default_rng(0).integers(0, 4, 150)).astype(np.int32)
    scale = fixed_point_scale(features)
    found, flags = [], []
    for same, k in ((True, 6), (False, 15)):
        groups = Groups(camera_N, same)
        lists = runner.collect([nearest_in_groups(runner, features, scale, groups, k, 2)])[0]
        found.append(lists)
        flags.append(encoding.reciprocal_flags(lists, Reciprocity(k, 0, False), "cpu", 0, 150))
    for start, stop in row_blocks(150, 2):
        expected = camera_weights(*found, *flags, "cpu", start, stop)
        assert same_bits(on_gpu.camera_weights(*found, *flags, start, stop, "cpu"), expected)


# ---- All of it --------------------------------------------------------------------------

CONFIGS = {
    "zhong": {},
    "faiss": {"dialect": "faiss"},
    "tf32": {"products": "tf32"},
    "bf16": {"products": "bf16"},
    "cameras": {"camera_aware": True},
}


def estimated(changes, device, backend="components"):
    features = reference.drawn(900, 32, 50, seed=7, noise=0.3, num_copies=20)
    camids = np.random.default_rng(0).integers(0, 4, 900)
    config = ClusterConfig(backend=backend, eps_rule="q", q=6, **changes)
    with Threads(num_threads=2, device=device) as runner:
        return estimate_pseudo_labels(
            features, config, camids_N=camids, runner=runner, num_blocks=4
        )


def assert_same_estimate(found, expected):
    assert np.array_equal(found.labels, expected.labels)
    assert np.array_equal(found.centroids, expected.centroids)
    assert (found.eps, found.num_backoffs, found.p) == (
        expected.eps,
        expected.num_backoffs,
        expected.p,
    )


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_the_whole_estimate_by_tensors(changes):
    """To torch "cpu:0" is the CPU; to the stages it is a device that isn't called cpu."""
    assert_same_estimate(estimated(changes, "cpu:0"), estimated(changes, "cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["components", "auto"])
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_the_whole_estimate_on_a_gpu(changes, backend):
    assert_same_estimate(estimated(changes, "cuda", backend), estimated(changes, "cpu"))
