"""What a GPU computes for the neighbours, run on the CPU, against its kernels: bit for bit."""

import gc
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import first, lattice, same_bits

from cluster import device, neighbours, search_on_device
from cluster.device import kept_on_device
from cluster.estimate import estimate_pseudo_labels
from cluster.neighbours import nearest_neighbours
from cluster.refine import Search, fixed_point_scale
from cluster.run import FULL, Threads, row_blocks
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


def nearest(runner, features, k, num_blocks):
    search = Search(k, fixed_point_scale(features))
    return nearest_neighbours(runner, features, search, row_blocks(len(features), num_blocks))


def test_nearest_neighbours(runner, device_runner, drawn):
    features, k = drawn
    expected = nearest(runner, features, k, 3)
    found = nearest(device_runner, features, k, 3)
    assert same_bits(first(found, min(k, len(features))), expected)


@settings(max_examples=40)
@given(lattice, st.integers(1, 12))
def test_ties(runner, device_runner, features, k):
    expected = nearest(runner, features, k, 2)
    found = nearest(device_runner, features, k, 2)
    assert same_bits(first(found, min(k, len(features))), expected)


def test_products_take_no_tf32_and_training_keeps_its_own():
    """Though the setting is the whole process's."""

    def seen(_):
        with search_on_device.fp32_products():
            time.sleep(0.001)
            return torch.get_float32_matmul_precision()

    torch.set_float32_matmul_precision("high")
    try:
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(seen, range(20))) == {"highest"}
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


# ---- Uploads ----------------------------------------------------------------------------


def test_an_array_is_uploaded_once_and_let_go_with_it(monkeypatch):
    uploads = []

    def upload(array, device):
        uploads.append(device)
        return torch.tensor(array)

    monkeypatch.setattr(device, "to_device", upload)
    array = np.arange(6, dtype=np.float32)
    kept = [kept_on_device(array, "cuda") for _ in range(3)]
    assert kept[0] is kept[1] is kept[2]
    assert uploads == ["cuda"]
    assert len(device._kept) == 1
    del array
    gc.collect()
    assert device._kept == {}


# ---- All of it --------------------------------------------------------------------------

CONFIGS = {"zhong": {}, "faiss": {"dialect": "faiss"}, "cameras": {"camera_aware": True}}


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


def test_a_full_gpu__the_cpu_makes_the_same_labels(monkeypatch):
    def full(*_):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")

    monkeypatch.setattr(neighbours, "search_rows", full)
    found = estimated({}, "cpu:0")
    expected = estimated({}, "cpu")
    assert_same_estimate(found, expected)
    assert found.notes == (*expected.notes, FULL)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["components", "auto"])
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_the_whole_estimate_on_a_gpu(changes, backend):
    assert_same_estimate(estimated(changes, "cuda", backend), estimated(changes, "cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuvs_on_a_gpu():
    pytest.importorskip("cuvs")
    assert_same_estimate(estimated({"search": "cuvs"}, "cuda"), estimated({}, "cpu"))
