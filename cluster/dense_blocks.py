"""Core samples and what joins them by cuML, on a GPU.

cuML's DBSCAN takes dense square matrices. Only the edges of the sparse graph go up; the matrix is
filled there. A graph whose matrix the GPU's memory can't hold is cut between its connected
components, as no cluster crosses them, and whole components share a block: exact at any N.
"""

from collections.abc import Callable
from itertools import pairwise
from math import isqrt
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from cluster.arrays import Ints, Labels
from cluster.core_samples import Cores, core_flags, cores_by_components
from cluster.device import to_device
from cluster.run import Runner

# Labels (B,) from a matrix (B, B), float32: 0 for neighbours and 1 for the rest; and min_samples.
DenseLabels: TypeAlias = Callable[[torch.Tensor, int], npt.NDArray[np.integer]]

MATRIX_SHARE = 0.5  # of the memory that is free; cuML gets half of what is left


class Packing(NamedTuple):
    """Blocks (start, stop) of the samples `order_M`, each of whole components of a graph, and the
    samples of those components that no block could hold."""

    order_M: npt.NDArray[np.intp]
    blocks: list[tuple[int, int]]
    too_large: npt.NDArray[np.intp]
    num_too_large: int  # components


def cores_by_dense_blocks(
    runner: Runner,
    graph: csr_array,
    min_samples: int,
    dense_labels: DenseLabels,
    max_dense: int,
) -> tuple[Cores, int]:
    """By a clusterer that only takes dense matrices, of at most `max_dense` samples.

    A component of more samples is solved on the sparse graph; the second result counts those. So
    is all if the device's memory runs out.
    """
    num_samples = graph.shape[0]
    order_M, blocks, too_large, num_too_large = pack(graph, min_samples, max_dense)
    packed = graph if len(order_M) == num_samples == blocks[0][1] else graph[order_M][:, order_M]
    parts = runner.on_device(
        "dbscan: dense block",
        labels_of_block,
        blocks,
        packed.indptr,
        packed.indices,
        dense_labels,
        min_samples,
    )
    if parts is None:
        return cores_by_components(graph, min_samples), 0
    component = np.full(num_samples, -1, np.int64)
    for (start, stop), labels_B in zip(blocks, parts, strict=True):
        component[order_M[start:stop]] = labels_B + start  # no other block has these numbers
    if num_too_large:
        _, found = cores_by_components(graph[too_large][:, too_large], min_samples)
        component[too_large] = found + num_samples
    return (core_flags(graph, min_samples), component), num_too_large


def pack(graph: csr_array, min_samples: int, max_dense: int) -> Packing:
    """Few blocks of at most `max_dense` samples; one, if that holds all.

    Components of fewer than `min_samples` samples have no core sample and are left out.
    """
    num_samples = graph.shape[0]
    if num_samples <= max_dense:
        none = np.empty(0, np.intp)
        return Packing(np.arange(num_samples), [(0, num_samples)], none, 0)
    _, component = connected_components(graph, directed=False)
    sizes = np.bincount(component)
    is_packed = (sizes >= min_samples) & (sizes <= max_dense)
    order = np.argsort(component, kind="stable")
    order_M = order[is_packed[component[order]]]
    ends = np.cumsum(sizes[is_packed])
    edges = [0]
    while edges[-1] < len(order_M):
        last = np.searchsorted(ends, edges[-1] + max_dense, side="right") - 1
        edges.append(int(ends[last]))
    is_too_large = sizes > max_dense
    too_large = np.flatnonzero(is_too_large[component])
    return Packing(order_M, list(pairwise(edges)), too_large, int(is_too_large.sum()))


def labels_of_block(
    indptr: npt.NDArray[np.integer],
    indices: Ints,
    dense_labels: DenseLabels,
    min_samples: int,
    device: str,
    start: int,
    stop: int,
) -> Labels:
    """Labels (B,) of rows start..stop of a graph, which has no edge to any other row."""
    counts_B = np.diff(indptr[start : stop + 1])
    columns_E = indices[indptr[start] : indptr[stop]] - np.int32(start)
    counts = to_device(counts_B, device)
    row_E = torch.repeat_interleave(counts, output_size=len(columns_E))
    distance_BB = torch.ones((stop - start, stop - start), device=device)
    distance_BB[row_E, to_device(columns_E, device).long()] = 0
    distance_BB.fill_diagonal_(0)
    return dense_labels(distance_BB, min_samples).astype(np.int64)


def cuml_labels(distance_BB: torch.Tensor, min_samples: int) -> npt.NDArray[np.integer]:
    """Labels by cuML, of which those of core samples alone count.

    To which cluster a border sample within reach of two belongs, cuML doesn't say.
    """
    import cuml  # takes seconds, once in a process's life

    torch.cuda.current_stream(distance_BB.device).synchronize()  # cuML's work is on another stream
    free, _ = torch.cuda.mem_get_info(distance_BB.device)
    fitted = cuml.DBSCAN(
        eps=0.5,  # between neighbours (0) and the rest (1), so that its fp32 eps can't matter
        min_samples=min_samples,
        metric="precomputed",
        max_mbytes_per_batch=free >> 21,
        calc_core_sample_indices=False,  # which would copy nearly all of the matrix
        output_type="numpy",
    ).fit(distance_BB)
    labels_B: npt.NDArray[np.integer] = np.asarray(fitted.labels_)
    return labels_B


def most_dense(device: str) -> int:
    """Samples of the largest matrix that a GPU has room for now."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return isqrt(int(MATRIX_SHARE * free) // 4)
