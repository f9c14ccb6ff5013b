"""Components packed into dense blocks, with scikit-learn in the place of cuML."""

from functools import partial

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components
from support import CPU_BACKENDS, dense, dense_cores, sparse

from cluster.core_samples import cores_by_components, cores_by_dense_blocks, pack_components
from cluster.dbscan import dbscan, neighbour_graph
from cluster.estimate import estimate_pseudo_labels
from cluster.rerank import jaccard_distance
from cluster.runner import by_stage
from daal.config import ClusterConfig


@pytest.fixture(scope="module")
def distance():
    return jaccard_distance(reference.drawn(400, 16, 40, seed=1, noise=0.6, num_copies=8))


def pretend_cuml(monkeypatch, max_dense):
    """Backend cuml on the CPU, with blocks of that size at most."""
    monkeypatch.setattr("cluster.dbscan.resolve_backend", lambda backend, device: backend)
    monkeypatch.setattr("cluster.dbscan.cuml_cores", dense_cores)
    monkeypatch.setattr(
        "cluster.dbscan.cores_by_dense_blocks", partial(cores_by_dense_blocks, max_dense=max_dense)
    )


def test_packing_keeps_components_whole_and_blocks_small(distance):
    graph = neighbour_graph(distance, 0.25)
    blocks = list(pack_components(graph, 4, 40))
    members = np.concatenate(blocks)
    assert len(np.unique(members)) == len(members)
    assert len(blocks) > 1
    for block in blocks:
        assert np.array_equal(block, np.unique(block))
        outside = np.setdiff1d(np.arange(400), block)
        assert graph[block][:, outside].nnz == 0
        assert len(block) <= 40 or connected_components(graph[block][:, block])[0] == 1


def test_packing_leaves_out_what_is_too_small_for_a_core_sample(distance):
    graph = neighbour_graph(distance, 0.25)
    _, component = connected_components(graph)
    sizes = np.bincount(component)[component]
    packed = np.sort(np.concatenate(list(pack_components(graph, 4, 40))))
    assert np.array_equal(packed, np.flatnonzero(sizes >= 4))
    assert len(packed) < 400


@pytest.mark.parametrize("max_dense", [1, 30, 100, 10_000])
@pytest.mark.parametrize("min_samples", [1, 2, 4, 8])
@pytest.mark.parametrize("eps", [0.0, 0.25, 0.4, 0.6])
def test_labels_are_those_of_components(runner, monkeypatch, distance, eps, min_samples, max_dense):
    pretend_cuml(monkeypatch, max_dense)
    expected = dbscan(distance, eps, min_samples, "components", runner=runner)
    assert np.array_equal(dbscan(distance, eps, min_samples, "cuml", runner=runner), expected)
    assert np.array_equal(dbscan(distance, eps, min_samples, "cuml"), expected)


def test_dense_and_sparse_blocks_are_tasks_side_by_side(runner, distance):
    graph = neighbour_graph(distance, 0.25)
    _, component = connected_components(graph)
    sizes = np.bincount(component)
    max_dense = int(np.sort(sizes)[-3])  # two are larger, unless they tie
    before = len(runner.times())
    (is_core, _), num_large = cores_by_dense_blocks(runner, graph, 4, dense_cores, max_dense)
    stages = by_stage(runner.times()[before:])
    assert num_large == (sizes > max_dense).sum() > 0
    assert stages["dbscan: sparse block"].num_tasks == num_large
    assert stages["dbscan: dense block"].num_tasks > 1
    assert np.array_equal(is_core, cores_by_components(graph, 4)[0])


def test_border_samples_and_numbers_are_those_of_components(runner, monkeypatch):
    """Cliques 1-4 and 5-8 are core; 0 borders on both (nearer to the second), 9 on the second."""
    cliques = ([1, 2, 3, 4], [5, 6, 7, 8], [10, 11, 12, 13])
    pairs = {(i, j): 0.1 for clique in cliques for i in clique for j in clique if i < j}
    distance = sparse(pairs | {(0, 1): 0.3, (0, 5): 0.1, (8, 9): 0.1}, 15)
    for max_dense in (3, 4, 9, 10, 100):
        pretend_cuml(monkeypatch, max_dense)
        labels = dbscan(distance, 0.3, 4, "cuml", runner=runner)
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
            found = dbscan(distance, eps, min_samples, backend, runner=runner)
            assert np.array_equal(found, expected)
            found = dbscan(reordered, eps, min_samples, backend, order_N=order, runner=runner)
            assert np.array_equal(found, expected)


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


def test_the_estimate_notes_what_was_clustered_on_the_cpu(monkeypatch):
    features = reference.drawn(300, 16, 20, seed=2, noise=0.3)
    config = ClusterConfig(k1=10, k2=3, p=0.02, backend="components")
    expected = estimate_pseudo_labels(features, config)
    pretend_cuml(monkeypatch, max_dense=5)
    found = estimate_pseudo_labels(features, config.model_copy(update={"backend": "cuml"}))
    assert np.array_equal(found.labels, expected.labels)
    assert expected.notes == ()
    assert len(found.notes) == 1
    assert "were clustered on the CPU" in found.notes[0]


def test_notes_of_clusterings_that_were_given_up_are_not_kept(monkeypatch):
    blurred = reference.drawn(500, 12, 30, seed=4, noise=1.0)
    config = ClusterConfig(k1=10, k2=3, p=0.08, backend="cuml")
    pretend_cuml(monkeypatch, max_dense=5)
    found = estimate_pseudo_labels(blurred, config)
    assert found.num_backoffs >= 1
    assert sum("clustered on the CPU" in note for note in found.notes) == 1
