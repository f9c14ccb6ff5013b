"""eps, and labels that every backend gives alike."""

import importlib
import re
import sys

import numpy as np
import pytest
import reference
from scipy.sparse import csr_array
from support import CPU_BACKENDS, dense, sparse

from cluster.dbscan import FoundBackend, cuml_available, dbscan, find_backend
from cluster.eps import estimate_eps
from cluster.rerank import jaccard_distance
from cluster.run import Threads
from daal.errors import ConfigError, LabelError


@pytest.fixture(scope="module")
def distance():
    return jaccard_distance(reference.drawn(400, 16, 40, seed=1, noise=0.6, num_copies=8))


# ---- eps --------------------------------------------------------------------------------


def test_eps_counts_absent_pairs_as_one_and_leaves_zeros_out():
    distance = sparse({(0, 1): 0.2, (1, 2): 0.4, (0, 3): 0.0}, 4)  # 5 pairs count
    assert estimate_eps(distance, 0.2) == pytest.approx(0.2)
    assert estimate_eps(distance, 0.4) == pytest.approx(0.3)
    assert estimate_eps(distance, 0.6) == pytest.approx(1.6 / 3)
    assert estimate_eps(distance, 1.0) == pytest.approx(3.6 / 5)


def test_eps_needs_no_distances_beyond_those_selected(distance):
    cut = distance.copy()
    largest = np.quantile(distance.data[distance.data > 1e-6], 0.5)
    cut.data[cut.data > largest] = 1
    assert estimate_eps(cut, 0.004) == estimate_eps(distance, 0.004) < largest


def test_eps_is_that_of_the_definition(distance):
    for p in (0.001, 0.0123, 0.3, 0.999):
        assert estimate_eps(distance, p) == pytest.approx(reference.eps(dense(distance), p))


@pytest.mark.parametrize("num_samples", [2, 3, 12, 63, 357, 400, 1000, 12_936])
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


# ---- Labels -----------------------------------------------------------------------------


@pytest.mark.parametrize("min_samples", [1, 2, 4, 8])
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.25, 0.4, 0.6])
def test_backends_agree(distance, eps, min_samples):
    expected = reference.dbscan(dense(distance), eps, min_samples)
    for backend in (*CPU_BACKENDS, "auto"):
        assert np.array_equal(dbscan(distance, eps, min_samples, backend), expected)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_rows_in_another_order_have_the_labels_of_their_samples(distance, backend):
    order = np.random.default_rng(0).permutation(400)
    for eps in (0.1, 0.25, 0.4):
        expected = dbscan(distance, eps, 4, backend)
        reordered = distance[order][:, order]
        found = dbscan(reordered, eps, 4, backend, samples_N=order)
        assert np.array_equal(found, expected[order])


def test_border_goes_to_the_smallest_label():
    """Cliques 1-4 and 5-8 are core; 0 borders on both (nearer to the second), 9 on the second."""
    cliques = ([1, 2, 3, 4], [5, 6, 7, 8])
    pairs = {(i, j): 0.1 for clique in cliques for i in clique for j in clique if i < j}
    distance = sparse(pairs | {(0, 1): 0.3, (0, 5): 0.1, (8, 9): 0.1}, 11)
    for backend in CPU_BACKENDS:
        assert dbscan(distance, 0.3, 4, backend).tolist() == [0] * 5 + [1] * 5 + [-1]


def test_distance_equal_to_eps_is_near():
    distance = sparse({(0, 1): np.float32(0.1)}, 2)
    assert dbscan(distance, 0.1, 2, "components").tolist() == [0, 0]
    assert dbscan(distance, 0.0999, 2, "components").tolist() == [-1, -1]


def test_eps_that_reaches_one_reaches_absent_pairs():
    distance = sparse({(0, 1): 0.5}, 5)
    assert dbscan(distance, 1.0, 5).tolist() == [0] * 5
    assert dbscan(distance, 1.0, 6).tolist() == [-1] * 5


def test_no_neighbours_at_all():
    distance = csr_array((5, 5), dtype=np.float32)
    for backend in CPU_BACKENDS:
        assert dbscan(distance, 0.5, 2, backend).tolist() == [-1] * 5
        assert dbscan(distance, 0.5, 1, backend).tolist() == [0, 1, 2, 3, 4]


# ---- Backends ---------------------------------------------------------------------------


@pytest.mark.parametrize(("available", "expected"), [(True, "cuml"), (False, "components")])
def test_auto_is_cuml_where_it_runs(monkeypatch, available, expected):
    monkeypatch.setattr("cluster.dbscan.cuml_available", lambda: available)
    monkeypatch.setattr("cluster.dbscan.most_dense", lambda device: 7)
    with Threads(1, "cpu") as on_cpus, Threads(1, "cpu:0") as on_a_device:
        assert find_backend(on_a_device, "auto") == FoundBackend(expected, 7 * available)
        assert find_backend(on_cpus, "auto").name == "components"
        assert find_backend(on_a_device, "sklearn").name == "sklearn"
        assert find_backend(on_a_device, "components").name == "components"


def test_cuml_without_gpu_says_so(distance, monkeypatch):
    monkeypatch.setattr("cluster.dbscan.cuml_available", lambda: False)
    with pytest.raises(ConfigError, match="GPU"):
        dbscan(distance, 0.4, 4, "cuml")


@pytest.mark.parametrize("broken", ["import nowhere", "raise RuntimeError('CUDA driver')"])
def test_a_cuml_that_fails_on_import_is_none(monkeypatch, tmp_path, broken):
    monkeypatch.delitem(sys.modules, "cuml", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "cuml.py").write_text("")
    assert cuml_available()
    monkeypatch.delitem(sys.modules, "cuml")
    (tmp_path / "cuml.py").write_text(broken)
    importlib.invalidate_caches()
    assert not cuml_available()


@pytest.mark.gpu
@pytest.mark.skipif(not cuml_available(), reason="needs cuML and a GPU")
def test_cuml_agrees(distance):
    for eps in (0.1, 0.25, 0.4, 0.6):
        expected = dbscan(distance, eps, 4, "components")
        assert np.array_equal(dbscan(distance, eps, 4, "cuml"), expected)
        blocks = dbscan(distance, eps, 4, FoundBackend("cuml", 100))
        assert np.array_equal(blocks, expected)
