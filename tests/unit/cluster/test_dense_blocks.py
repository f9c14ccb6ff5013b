"""cuML's dense matrices, with scikit-learn in its place."""

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components
from support import CPU_BACKENDS, dense, dense_labels, sparse

from cluster.dbscan import FoundBackend, dbscan, neighbour_graph
from cluster.dense_blocks import labels_of_block, pack
from cluster.estimate import estimate_pseudo_labels
from cluster.rerank import jaccard_distance
from cluster.run import FULL, Threads
from daal.config import ClusterConfig


@pytest.fixture(scope="module")
def runner():
    """To torch "cpu:0" is the CPU; to the stages it is a device that isn't called cpu."""
    with Threads(num_threads=2, device="cpu:0") as threads:
        yield threads


@pytest.fixture(scope="module")
def distance():
    return jaccard_distance(reference.drawn(400, 16, 40, seed=1, noise=0.6, num_copies=8))


def pretend_cuml(monkeypatch, max_dense):
    """cuML is there, and has room for matrices of that size."""
    monkeypatch.setattr("cluster.dbscan.cuml_available", lambda: True)
    monkeypatch.setattr("cluster.dbscan.cuml_labels", dense_labels)
    monkeypatch.setattr("cluster.dbscan.most_dense", lambda device: max_dense)


def test_packing_keeps_components_whole_and_blocks_small(distance):
    graph = neighbour_graph(distance, 0.25)
    order, blocks, too_large, num_too_large = pack(graph, 4, 40)
    assert len(np.unique(order)) == len(order)
    assert len(blocks) > 1
    assert [start for start, _ in blocks] == [0, *(stop for _, stop in blocks[:-1])]
    for start, stop in blocks:
        block = order[start:stop]
        outside = np.setdiff1d(np.arange(400), block)
        assert graph[block][:, outside].nnz == 0
        assert 0 < len(block) <= 40
    _, component = connected_components(graph)
    sizes = np.bincount(component)
    assert np.array_equal(too_large, np.flatnonzero(sizes[component] > 40))
    assert num_too_large == (sizes > 40).sum()


def test_the_matrix_is_zero_for_neighbours_and_the_samples_themselves(distance):
    graph = neighbour_graph(distance, 0.25)
    seen = []

    def look(distance_BB, min_samples):
        seen.append(distance_BB)
        return np.zeros(len(distance_BB))

    labels_of_block(graph.indptr, graph.indices, look, 4, "cpu", 0, 400)
    expected = 1 - graph.toarray().astype(np.float32)
    np.fill_diagonal(expected, 0)
    assert torch.equal(seen[0], torch.from_numpy(expected))


def test_a_full_gpu__the_components_give_the_same_labels(runner, monkeypatch, distance):
    pretend_cuml(monkeypatch, 1000)

    def full(*_):
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr("cluster.dbscan.cuml_labels", full)
    expected = dbscan(distance, 0.25, 4, "components")
    num_notes = len(runner.notes)
    assert np.array_equal(dbscan(distance, 0.25, 4, "cuml", runner=runner), expected)
    assert runner.notes[num_notes:] == [FULL]


def test_cuml_is_asked_about_once_in_an_estimate(monkeypatch):
    blurred = reference.drawn(500, 12, 30, seed=4, noise=1.0)
    config = ClusterConfig(k1=10, k2=3, p=0.08)
    pretend_cuml(monkeypatch, 10_000)
    with Threads(2, "cpu:0") as threads:
        found = estimate_pseudo_labels(blurred, config, runner=threads)
    assert found.num_backoffs >= 1
    assert found.stages["dbscan: backend"].num_tasks == 1
    assert found.stages["dbscan: dense block"].num_tasks == 1 + found.num_backoffs
    expected = estimate_pseudo_labels(blurred, config)
    assert np.array_equal(found.labels, expected.labels)


def test_border_samples_and_numbers_are_those_of_components(runner, monkeypatch):
    """Cliques 1-4 and 5-8 are core; 0 borders on both (nearer to the second), 9 on the second."""
    cliques = ([1, 2, 3, 4], [5, 6, 7, 8], [10, 11, 12, 13])
    pairs = {(i, j): 0.1 for clique in cliques for i in clique for j in clique if i < j}
    distance = sparse(pairs | {(0, 1): 0.3, (0, 5): 0.1, (8, 9): 0.1}, 15)
    monkeypatch.setattr("cluster.dbscan.cuml_labels", dense_labels)
    for max_dense in (3, 4, 9, 10, 100):
        labels = dbscan(distance, 0.3, 4, FoundBackend("cuml", max_dense), runner=runner)
        assert labels.tolist() == [0] * 5 + [1] * 5 + [2] * 4 + [-1]


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
@given(
    graphs,
    st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.3, 0.9]),
    st.integers(1, 6),
    st.sampled_from([1, 2, 5, 100]),
)
def test_all_backends_agree_on_any_small_graph(runner, graph, eps, min_samples, max_dense):
    num_samples, pairs, order = graph
    distance = sparse(pairs, num_samples)
    expected = reference.dbscan(dense(distance), eps, min_samples)
    order = np.array(order)
    reordered = distance[order][:, order]
    with pytest.MonkeyPatch.context() as monkeypatch:
        pretend_cuml(monkeypatch, max_dense)
        for backend in (*CPU_BACKENDS, "cuml"):
            assert np.array_equal(
                dbscan(distance, eps, min_samples, backend, runner=runner), expected
            )
            found = dbscan(reordered, eps, min_samples, backend, samples_N=order, runner=runner)
            assert np.array_equal(found, expected[order])


def test_components_too_large_for_a_block_are_noted(runner, monkeypatch, distance):
    _, component = connected_components(neighbour_graph(distance, 0.25))
    sizes = np.bincount(component)
    notes = []
    pretend_cuml(monkeypatch, int(sizes.max()))
    dbscan(distance, 0.25, 4, "cuml", runner=runner, notes=notes)
    assert notes == []
    pretend_cuml(monkeypatch, int(sizes.max()) - 1)
    dbscan(distance, 0.25, 4, "cuml", runner=runner, notes=notes)
    assert len(notes) == 1
    num_largest = (sizes == sizes.max()).sum()
    assert notes[0].startswith(f"{num_largest} component(s)")
    assert "CPU" in notes[0]


def test_notes_of_clusterings_that_were_given_up_are_not_kept(monkeypatch, runner):
    blurred = reference.drawn(500, 12, 30, seed=4, noise=1.0)
    config = ClusterConfig(k1=10, k2=3, p=0.08, backend="cuml")
    pretend_cuml(monkeypatch, max_dense=5)
    found = estimate_pseudo_labels(blurred, config, runner=runner)
    assert found.num_backoffs >= 1
    assert sum("clustered on the CPU" in note for note in found.notes) == 1
