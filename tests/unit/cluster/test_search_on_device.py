"""What a GPU computes for the neighbours, run on the CPU, against its kernels: bit for bit."""

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import lattice, same_bits

from cluster import device_arrays, neighbours, search_on_device
from cluster.device_arrays import kept_on_device
from cluster.estimate import estimate_pseudo_labels
from cluster.neighbours import nearest_in_groups, nearest_neighbours
from cluster.refine import Groups, Neighbours, Search, fixed_point_scale, rounding_bound
from cluster.runner import FULL, Threads
from cluster.search_on_device import search_rows
from daal.config import ClusterConfig

SETS = {
    "plain": (reference.drawn(300, 24, 20, seed=1), 20),
    "copies": (reference.drawn(200, 16, 12, seed=2, num_copies=40), 10),
    "no more than k": (reference.drawn(15, 8, 4, seed=3), 20),
    "one person": (np.ones((40, 8), np.float32), 10),
    "far apart": (1e6 * reference.drawn(100, 8, 9, seed=4) + np.float32(5e6), 12),
}


@pytest.fixture(params=SETS.values(), ids=SETS)
def drawn(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["whole", "pieces"], autouse=True)
def in_pieces(request, monkeypatch):
    """All rows, columns and pairs at once, and few."""
    if request.param:
        monkeypatch.setattr(neighbours, "ROWS_ON_DEVICE", 37)
        monkeypatch.setattr(search_on_device, "COLUMNS_ON_DEVICE", 29)
        monkeypatch.setattr(search_on_device, "MAX_BYTES", 20_000)


@pytest.fixture(scope="module")
def device_runner():
    """To torch "cpu:0" is the CPU; to the stages it is a device that isn't called cpu."""
    with Threads(num_threads=2, device="cpu:0") as threads:
        yield threads


def first(found: Neighbours, k: int) -> Neighbours:
    """The k nearest alone: after them come others that were measured."""
    return Neighbours(found.indices_NK[:, :k], found.sq_distances_NK[:, :k], found[2])


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_nearest_neighbours(runner, device_runner, drawn, precision):
    features, k = drawn
    expected = runner.collect([nearest_neighbours(runner, features, k, 3)])[0]
    found = device_runner.collect([nearest_neighbours(device_runner, features, k, 3, precision)])[0]
    assert same_bits(first(found, min(k, len(features))), expected)


@settings(max_examples=40)
@given(lattice, st.integers(1, 12))
def test_ties(runner, device_runner, features, k):
    expected = runner.collect([nearest_neighbours(runner, features, k, 2)])[0]
    found = device_runner.collect([nearest_neighbours(device_runner, features, k, 2)])[0]
    assert same_bits(first(found, min(k, len(features))), expected)


@settings(max_examples=40)
@given(lattice, st.integers(1, 40), st.integers(1, 4), st.integers(0, 9))
def test_groups_are_searched_apart(runner, device_runner, features, k, num_groups, seed):
    of_N = np.sort(np.random.default_rng(seed).integers(0, num_groups, len(features)))
    scale = fixed_point_scale(features)
    for same in (True, False):
        groups = Groups(of_N.astype(np.int32), same)
        found, expected = (
            each.collect([nearest_in_groups(each, features, scale, groups, k, 2)])[0]
            for each in (device_runner, runner)
        )
        assert same_bits(first(found, min(k, len(features))), expected)


def test_other_candidates_come_with_their_distance():
    features = reference.drawn(120, 16, 12, seed=5)
    scale = fixed_point_scale(features)
    found = search_rows(features, Search(5, scale), "cpu", 30, 60)
    more = search_rows(features, Search(9, scale), "cpu", 30, 60)
    assert found.indices_NK.shape[1] > 5
    # Beyond the k nearest they needn't be the next ones; here they are.
    assert same_bits(first(found, 9), first(more, 9))


def test_a_rounding_that_hides_a_neighbour_is_found(monkeypatch):
    """Without candidates beyond those asked for, coarse products choose wrong ones."""
    features = reference.drawn(300, 24, 3, seed=1, noise=0.05)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    scale = fixed_point_scale(features)
    expected = search_rows(features, Search(8, scale), "cpu", 0, 300)
    monkeypatch.setitem(search_on_device.SLACK, "bf16", 0)
    blind = search_rows(features, Search(8, scale, "bf16", certify=False), "cpu", 0, 300)
    assert not same_bits(first(blind, 8), first(expected, 8))
    found = search_rows(features, Search(8, scale, "bf16"), "cpu", 0, 300)
    assert same_bits(first(found, 8), first(expected, 8))
    assert rounding_bound("bf16", 24) > rounding_bound("tf32", 24) > rounding_bound("fp32", 24)


def test_each_product_has_its_own_precision():
    """Though the setting is the whole process's."""

    def seen(precision):
        with search_on_device.matmul_precision(precision):
            time.sleep(0.001)
            return torch.get_float32_matmul_precision()

    wanted = ["tf32", "fp32"] * 20
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(seen, wanted))
    assert found == [{"tf32": "high", "fp32": "highest"}[precision] for precision in wanted]
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("precision", "expected"), [("fp32", "highest"), ("tf32", "high"), ("bf16", "highest")]
)
def test_products_have_their_own_precision_and_training_keeps_its(precision, expected):
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(KeyError), search_on_device.matmul_precision(precision):
            assert torch.get_float32_matmul_precision() == expected
            raise KeyError
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


# ---- Uploads ----------------------------------------------------------------------------


def test_an_array_is_uploaded_once_and_let_go_with_it(monkeypatch):
    uploads = []

    def upload(array, device):
        uploads.append(device)
        return torch.tensor(array)

    monkeypatch.setattr(device_arrays, "to_device", upload)
    array = np.arange(6, dtype=np.float32)
    kept = [kept_on_device(array, "cuda") for _ in range(3)]
    assert kept[0] is kept[1] is kept[2]
    assert uploads == ["cuda"]
    assert len(device_arrays._kept) == 1
    del array
    gc.collect()
    assert device_arrays._kept == {}


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
    config = ClusterConfig(backend=backend, q=6, **changes)
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
def test_the_whole_estimate(changes):
    found = estimated(changes, "cpu:0")
    assert_same_estimate(found, estimated(changes, "cpu"))
    assert "neighbours: search" in found.stages
    assert "neighbours: products" not in found.stages


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError("std::bad_alloc: out_of_memory: CUDA error"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["torch", "rapids", "cublas"],
)
def test_a_full_gpu__the_cpu_makes_the_same_labels(monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(neighbours, "search_rows", full)
    found = estimated({}, "cpu:0")
    expected = estimated({}, "cpu")
    assert_same_estimate(found, expected)
    assert found.notes == (*expected.notes, FULL)


def test_another_error_of_the_gpu_is_not_taken_for_that(monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(neighbours, "search_rows", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        estimated({}, "cpu:0")


def test_the_gpu_works_for_the_thread_that_asks(monkeypatch, device_runner):
    seen = []
    monkeypatch.setattr(
        neighbours,
        "search_rows",
        lambda *given: seen.append(threading.current_thread()) or search_rows(*given),
    )
    nearest_neighbours(device_runner, reference.drawn(90, 8, 4, seed=1), 5, 2)
    assert set(seen) == {threading.current_thread()}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["components", "auto"])
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_the_whole_estimate_on_a_gpu(changes, backend):
    assert_same_estimate(estimated(changes, "cuda", backend), estimated(changes, "cpu"))
