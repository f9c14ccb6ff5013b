"""eps, the DBSCAN backends and the packing for cuML."""

import re

import numpy as np
import pytest
import reference
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import DBSCAN

from cluster.dbscan import (
    _cores_of,
    cores_by_dense_blocks,
    cuml_available,
    dbscan,
    estimate_eps,
    neighbour_graph,
    number_clusters,
    pack_components,
)
from cluster.rerank import jaccard_distance
from daal.errors import ConfigError, LabelError


def sparse(pairs, num_samples):
    """Symmetric matrix from {(i, j): distance}, without a diagonal."""
    rows, cols = np.array([*pairs, *((j, i) for i, j in pairs)]).T
    return csr_array(
        (np.array([*pairs.values()] * 2, np.float32), (rows, cols)), shape=(num_samples,) * 2
    )


def dense_cores(distance_BB, min_samples):
    """A CPU stand-in for cuML's DBSCAN on a dense block."""
    assert distance_BB.dtype == np.float32
    fitted = DBSCAN(eps=0.5, min_samples=min_samples, metric="precomputed").fit(distance_BB)
    return _cores_of(fitted.core_sample_indices_, fitted.labels_)


@pytest.fixture(scope="module")
def distance():
    return jaccard_distance(reference.drawn(400, 16, 40, seed=1, noise=0.6, num_copies=8))


def test_eps_counts_absent_pairs_as_one_and_leaves_zeros_out():
    distance = sparse({(0, 1): 0.2, (1, 2): 0.4, (0, 3): 0.0}, 4)  # 5 pairs count
    assert estimate_eps(distance, 0.2) == pytest.approx(0.2)
    assert estimate_eps(distance, 0.4) == pytest.approx(0.3)
    assert estimate_eps(distance, 0.6) == pytest.approx(1.6 / 3)
    assert estimate_eps(distance, 1.0) == pytest.approx(3.6 / 5)


def test_eps_error_names_a_p_that_works():
    distance = sparse({(0, 1): 0.2, (1, 2): 0.4}, 12)
    with pytest.raises(LabelError) as error:
        estimate_eps(distance, 1.6e-3)
    p = float(re.search(r"use p=(\S+) or more", str(error.value))[1])
    assert estimate_eps(distance, p) == pytest.approx(0.2)
    with pytest.raises(LabelError):
        estimate_eps(distance, p * 0.98)


def test_eps_of_copies_only():
    with pytest.raises(LabelError, match="distance 0"):
        estimate_eps(sparse({(0, 1): 0.0}, 2), 0.5)


@pytest.mark.parametrize("min_samples", [1, 2, 4, 8])
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.25, 0.4, 0.6])
def test_backends_agree(distance, eps, min_samples):
    full = np.ones(distance.shape)
    full[distance.tocoo().row, distance.tocoo().col] = distance.data
    expected = reference.dbscan(full, eps, min_samples)
    graph = neighbour_graph(distance, eps)
    for backend in ("sklearn", "components", "auto"):
        assert np.array_equal(dbscan(distance, eps, min_samples, backend), expected)
    for max_dense in (1, 30, 10_000):
        cores = cores_by_dense_blocks(graph, min_samples, dense_cores, max_dense)
        assert np.array_equal(number_clusters(graph, *cores), expected)


def test_packing_keeps_components_whole_and_blocks_small(distance):
    graph = neighbour_graph(distance, 0.25)
    blocks = list(pack_components(graph, 4, 40))
    members = np.concatenate(blocks)
    assert len(np.unique(members)) == len(members)
    assert len(blocks) > 1
    for block in blocks:
        outside = np.setdiff1d(np.arange(400), block)
        assert graph[block][:, outside].nnz == 0
        assert len(block) <= 40 or connected_components(graph[block][:, block])[0] == 1


def test_border_goes_to_the_smallest_label():
    """Cliques 1-4 and 5-8 are core; 0 borders on both (nearer to the second), 9 on the second."""
    cliques = ([1, 2, 3, 4], [5, 6, 7, 8])
    pairs = {(i, j): 0.1 for clique in cliques for i in clique for j in clique if i < j}
    distance = sparse(pairs | {(0, 1): 0.3, (0, 5): 0.1, (8, 9): 0.1}, 11)
    for backend in ("sklearn", "components"):
        assert dbscan(distance, 0.3, 4, backend).tolist() == [0] * 5 + [1] * 5 + [-1]


def test_distance_equal_to_eps_is_near():
    distance = sparse({(0, 1): np.float32(0.1)}, 2)
    assert dbscan(distance, 0.1, 2, "components").tolist() == [0, 0]
    assert dbscan(distance, 0.0999, 2, "components").tolist() == [-1, -1]


def test_stored_zeros_are_neighbours():
    distance = sparse({(0, 1): 0.0, (1, 2): 0.0, (0, 2): 0.0}, 4)
    for backend in ("sklearn", "components"):
        assert dbscan(distance, 0.0, 3, backend).tolist() == [0, 0, 0, -1]


def test_eps_that_reaches_one_reaches_absent_pairs():
    distance = sparse({(0, 1): 0.5}, 5)
    assert dbscan(distance, 1.0, 5).tolist() == [0] * 5
    assert dbscan(distance, 1.0, 6).tolist() == [-1] * 5


def test_no_neighbours_at_all():
    distance = csr_array((5, 5), dtype=np.float32)
    for backend in ("sklearn", "components"):
        assert dbscan(distance, 0.5, 2, backend).tolist() == [-1] * 5
        assert dbscan(distance, 0.5, 1, backend).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.skipif(cuml_available(), reason="cuML runs here")
def test_cuml_without_gpu_says_so(distance):
    with pytest.raises(ConfigError, match="GPU"):
        dbscan(distance, 0.4, 4, "cuml")


@pytest.mark.gpu
@pytest.mark.skipif(not cuml_available(), reason="needs cuML and a GPU")
def test_cuml_agrees(distance):
    for eps in (0.1, 0.25, 0.4, 0.6):
        expected = dbscan(distance, eps, 4, "components")
        assert np.array_equal(dbscan(distance, eps, 4, "cuml"), expected)
