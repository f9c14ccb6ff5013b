"""Core samples and what joins them: on the sparse graph, or, for cuML, on dense blocks.

cuML's DBSCAN takes dense square matrices only. No cluster crosses the connected components of
the eps-graph, so whole components are packed into blocks of bounded size, and a block is a task:
exact at any N, in bounded memory, on as many GPUs as there are.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from cluster.runner import Handle, Runner

Labels: TypeAlias = npt.NDArray[np.int64]
# Which samples are core, and a number for the component of each that is (any for the others).
Cores: TypeAlias = tuple[npt.NDArray[np.bool_], Labels]
DenseCores: TypeAlias = Callable[[npt.NDArray[np.float32], int], Cores]

MAX_DENSE = 8192  # samples in a dense block: 256 MB of fp32


def cores_by_components(graph: csr_array, min_samples: int) -> Cores:
    """By the degrees, and the connected components of the core samples' graph."""
    is_core = np.diff(graph.indptr) + 1 >= min_samples
    core = np.flatnonzero(is_core)
    component = np.full(graph.shape[0], -1, np.int64)
    component[core] = connected_components(graph[core][:, core], directed=False)[1]
    return is_core, component


def cores_by_dense_blocks(
    runner: Runner,
    graph: csr_array,
    min_samples: int,
    dense_cores: DenseCores,
    max_dense: int = MAX_DENSE,
) -> tuple[Cores, int]:
    """By a clusterer that only takes dense matrices.

    `dense_cores(distance_BB, min_samples)` gets 0 for neighbours and 1 for the rest. A component
    of more than `max_dense` samples is solved on the sparse graph; the second result counts
    those.
    """
    is_core = np.zeros(graph.shape[0], np.bool_)
    component = np.full(graph.shape[0], -1, np.int64)
    packs = list(pack_components(graph, min_samples, max_dense))

    def solve(members: npt.NDArray[np.intp]) -> Handle:
        block = graph[members][:, members]
        if len(members) > max_dense:
            return runner.submit("dbscan: sparse block", cores_by_components, block, min_samples)
        dense = (cores_of_block, dense_cores, block, min_samples)
        return runner.submit("dbscan: dense block", *dense, on_device=True)

    handles = [solve(members) for members in packs]
    num_found = 0
    for members, (block_is_core, found) in zip(packs, runner.collect(handles), strict=True):
        is_core[members] = block_is_core
        component[members] = found + num_found
        num_found += len(members)
    return (is_core, component), sum(len(members) > max_dense for members in packs)


def pack_components(
    graph: csr_array, min_samples: int, max_dense: int
) -> Iterator[npt.NDArray[np.intp]]:
    """Sorted members of blocks of whole connected components, `max_dense` samples at most.

    A larger component is a block of its own. Components of fewer than `min_samples` samples
    have no core sample and are left out.
    """
    num_components, component = connected_components(graph, directed=False)
    sizes = np.bincount(component, minlength=num_components)
    by_component = np.split(np.argsort(component, kind="stable"), np.cumsum(sizes)[:-1])
    packed: list[npt.NDArray[np.intp]] = []
    num_packed = 0
    for members in by_component:
        if len(members) < min_samples:
            continue
        if packed and num_packed + len(members) > max_dense:
            yield np.sort(np.concatenate(packed))
            packed, num_packed = [], 0
        packed.append(members)
        num_packed += len(members)
    if packed:
        yield np.sort(np.concatenate(packed))


def cores_of_block(dense_cores: DenseCores, graph: csr_array, min_samples: int) -> Cores:
    """A block's cores, by way of its dense matrix."""
    distance_BB = 1 - graph.toarray().astype(np.float32)
    np.fill_diagonal(distance_BB, 0)
    return dense_cores(distance_BB, min_samples)


def cuml_cores(distance_BB: npt.NDArray[np.float32], min_samples: int) -> Cores:
    """A block's cores by cuML, on this process's GPU."""
    import cuml

    fitted = cuml.DBSCAN(
        eps=0.5,  # between neighbours (0) and the rest (1), so that its fp32 eps can't matter
        min_samples=min_samples,
        metric="precomputed",
        calc_core_sample_indices=True,
        output_type="numpy",
    ).fit(distance_BB)
    core_indices = np.asarray(fitted.core_sample_indices_)
    # cuML doesn't say to which cluster a border sample within reach of two belongs, and some
    # releases pad the core indices with -1: only core samples' labels are used.
    return cores_of(core_indices[core_indices >= 0], np.asarray(fitted.labels_))


def cores_of(core_indices: Any, labels: Any) -> Cores:
    """From what a DBSCAN object says once fitted."""
    is_core = np.zeros(len(labels), np.bool_)
    is_core[core_indices] = True
    return is_core, np.where(is_core, labels, -1).astype(np.int64)
