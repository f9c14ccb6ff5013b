"""DBSCAN: labels that every backend gives alike. Where there is no cuML, scikit-learn stands in."""

import importlib
import sys
from functools import partial

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN
from support import CPU_BACKENDS, dense, sparse

from cluster import core_samples
from cluster.core_samples import join_by_components, join_by_cuml, join_by_sklearn, join_cores_by
from cluster.dbscan import dbscan
from cluster.estimate import estimate_pseudo_labels
from cluster.jaccard import jaccard_distance
from cluster.run import FULL, Threads, can_import
from daal.config import ClusterConfig
from daal.errors import ConfigError


@pytest.fixture(scope="module")
def device_runner():
    """To torch "cpu:0" is the CPU; to the stages it is a device that isn't called cpu."""
    with Threads(num_threads=2, device="cpu:0") as threads:
        yield threads


@pytest.fixture(scope="module")
def distance():
    return jaccard_distance(reference.drawn(400, 16, 40, seed=1, noise=0.6, num_copies=8))


def sklearn_labels(distance_NN, min_samples):
    assert distance_NN.dtype == torch.float32
    fitted = DBSCAN(eps=0.5, min_samples=min_samples, metric="precomputed")
    return fitted.fit(distance_NN.numpy()).labels_


@pytest.fixture(scope="module")
def backends(device_runner):
    """Functions that join core samples, one of them cuML's with a stand-in."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(core_samples, "cuml_labels", sklearn_labels)
        yield [*CPU_BACKENDS, partial(join_by_cuml, device_runner)]


graphs = st.integers(1, 14).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.dictionaries(
            st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda p: p[0] < p[1]),
            st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.3, 0.5, 0.99]),
            max_size=3 * n,
        )
        if n > 1
        else st.just({}),
        st.permutations(range(n)),
    )
)


@settings(max_examples=100)
@given(graphs, st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.3, 0.9]), st.integers(1, 6))
def test_all_backends_agree_on_any_small_graph_in_any_order(backends, graph, eps, min_samples):
    num_samples, pairs, order = graph
    distance, order = sparse(pairs, num_samples), np.array(order)
    expected = reference.dbscan(dense(distance), eps, min_samples)
    reordered = distance[order][:, order]
    for join_cores in backends:
        assert np.array_equal(dbscan(distance, eps, min_samples, join_cores), expected)
        found = dbscan(reordered, eps, min_samples, join_cores, order)
        assert np.array_equal(found, expected[order])


def test_eps_that_reaches_one_reaches_absent_pairs():
    distance = sparse({(0, 1): 0.5}, 5)
    assert dbscan(distance, 1.0, 5).tolist() == [0] * 5
    assert dbscan(distance, 1.0, 6).tolist() == [-1] * 5


def pretend_cuml(monkeypatch, labels=sklearn_labels):
    monkeypatch.setattr(core_samples, "can_import", lambda runner, _: runner.device != "cpu")
    monkeypatch.setattr(core_samples, "cuml_labels", labels)


def test_auto_is_cuml_where_it_runs(runner, device_runner, monkeypatch):
    assert join_cores_by(device_runner, "auto") is join_by_components
    pretend_cuml(monkeypatch)
    assert join_cores_by(device_runner, "auto").func is join_by_cuml
    assert join_cores_by(runner, "auto") is join_by_components
    assert join_cores_by(device_runner, "components") is join_by_components
    assert join_cores_by(device_runner, "sklearn") is join_by_sklearn


def test_cuml_without_gpu_says_so(runner):
    with pytest.raises(ConfigError, match="cuml needs a GPU and the package cuml"):
        estimate_pseudo_labels(np.eye(9), ClusterConfig(backend="cuml"), runner=runner)


@pytest.mark.parametrize("broken", ["import nowhere", "raise RuntimeError('CUDA driver')"])
def test_a_package_that_fails_on_import_is_none(
    runner, device_runner, monkeypatch, tmp_path, broken
):
    monkeypatch.setitem(sys.modules, "cuml", None)  # so that it is taken away at the end
    monkeypatch.delitem(sys.modules, "cuml")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "cuml.py").write_text("")
    assert can_import(device_runner, "cuml") and not can_import(runner, "cuml")
    monkeypatch.delitem(sys.modules, "cuml")
    (tmp_path / "cuml.py").write_text(broken)
    importlib.invalidate_caches()
    assert not can_import(device_runner, "cuml")


@pytest.mark.parametrize("reason", ["full", "too large"])
def test_where_the_gpu_has_no_room__the_components_give_the_same_labels(monkeypatch, reason):
    def full(*_):
        raise MemoryError("std::bad_alloc")

    pretend_cuml(monkeypatch, full)
    if reason == "too large":
        monkeypatch.setattr(core_samples, "MAX_DENSE", 5)
    blurred = reference.drawn(500, 12, 30, seed=4, noise=1.0)
    config = ClusterConfig(k1=10, k2=3, p=0.08, backend="cuml")
    with Threads(2, "cpu:0") as runner:
        found = estimate_pseudo_labels(blurred, config, runner=runner)
    expected = estimate_pseudo_labels(blurred, config.model_copy(update={"backend": "auto"}))
    assert np.array_equal(found.labels, expected.labels)
    assert found.notes == (*expected.notes, *[FULL] * (reason == "full"))


@pytest.mark.parametrize(("most", "num_blocks"), [(300, 2), (80, 7)])
def test_cuml_gets_blocks_of_whole_components(monkeypatch, most, num_blocks):
    seen = []

    def look(distance_BB, min_samples):
        seen.append(len(distance_BB))
        return sklearn_labels(distance_BB, min_samples)

    pretend_cuml(monkeypatch, look)
    monkeypatch.setattr(core_samples, "MAX_DENSE", most)
    features = reference.drawn(500, 25, 30, seed=4, noise=0.3)
    config = ClusterConfig(k1=10, k2=3, eps_rule="fixed", eps=0.5, backend="cuml")
    with Threads(2, "cpu:0") as runner:
        found = estimate_pseudo_labels(features, config, runner=runner)
    assert len(seen) >= num_blocks and sum(seen) == 500 and max(seen) <= most
    expected = estimate_pseudo_labels(features, config.model_copy(update={"backend": "auto"}))
    assert expected.num_clusters > 10
    assert np.array_equal(found.labels, expected.labels)


@pytest.mark.gpu
def test_cuml_agrees(distance):
    with Threads(1) as runner:
        if not can_import(runner, "cuml"):
            pytest.skip("needs cuML and a GPU")
        for eps in (0.1, 0.25, 0.4, 0.6):
            found = dbscan(distance, eps, 4, partial(join_by_cuml, runner))
            assert np.array_equal(found, dbscan(distance, eps, 4))
