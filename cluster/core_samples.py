"""Who joins DBSCAN's core samples to components: SciPy, scikit-learn, or cuML on a GPU."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from cluster.arrays import Ints, Labels
from cluster.device import to_device
from cluster.run import Runner, can_import
from daal.config import Backend
from daal.errors import ConfigError

# From a graph and min_samples, the component of each core sample (N,): any number that no other
# component has. What other samples get doesn't count.
JoinCores: TypeAlias = Callable[[csr_array, int], Labels]

MAX_DENSE = 16_384  # samples of one of cuML's matrices: 1 GB


def core_flags(graph: csr_array, min_samples: int) -> npt.NDArray[np.bool_]:
    """Which samples have `min_samples` neighbours, themselves counted."""
    is_core_N: npt.NDArray[np.bool_] = np.diff(graph.indptr) + 1 >= min_samples
    return is_core_N


def join_cores_by(runner: Runner, backend: Backend) -> JoinCores:
    """The backend's function: `auto` is cuml where the runner computes on a GPU that has it.

    Raises ConfigError if cuML is wanted and can't run.
    """
    if backend == "sklearn":
        return join_by_sklearn
    if backend != "components":
        if can_import(runner, "cuml"):
            return partial(join_by_cuml, runner)
        if backend == "cuml":
            raise ConfigError(
                "cluster.backend=cuml needs a GPU and the package cuml, and one of them is missing "
                "here; use auto, components or sklearn, which give the same labels."
            )
    return join_by_components


def join_by_components(graph: csr_array, min_samples: int) -> Labels:
    """By the connected components of the core samples' graph."""
    core = np.flatnonzero(core_flags(graph, min_samples))
    component_N = np.full(graph.shape[0], -1, np.int64)
    component_N[core] = connected_components(graph[core][:, core], directed=False)[1]
    return component_N


def join_by_sklearn(graph: csr_array, min_samples: int) -> Labels:
    """By scikit-learn's DBSCAN."""
    from sklearn.cluster import DBSCAN  # takes a second, and 130 MB

    # It adds the diagonal itself, and takes every stored distance up to eps for a neighbour.
    fitted = DBSCAN(eps=1.0, min_samples=min_samples, metric="precomputed").fit(
        graph.astype(np.float64)
    )
    return np.asarray(fitted.labels_, np.int64)


def join_by_cuml(runner: Runner, graph: csr_array, min_samples: int) -> Labels:
    """By cuML's DBSCAN, which takes dense matrices only: one for each block of whole components.

    By components where one of them is too large for a matrix.
    """
    component_N = connected_components(graph, directed=False)[1]
    order_N = component_N.argsort(kind="stable")
    blocks = whole_components(np.bincount(component_N).cumsum())
    if blocks is None:
        return join_by_components(graph, min_samples)
    by_component = graph[order_N][:, order_N]
    found = runner.on_device(
        "dbscan: cuml", labels_on_device, blocks, by_component.indptr, by_component.indices,
        min_samples,
    )  # fmt: skip
    if found is None:  # the device's memory ran out
        return join_by_components(graph, min_samples)
    labels_N: Labels = np.empty(len(order_N), np.int64)
    for (start, stop), labels_B in zip(blocks, found, strict=True):
        # Made different from those of other blocks, of which each has fewer labels than samples.
        labels_N[order_N[start:stop]] = np.where(labels_B < 0, -1, labels_B + start)
    return labels_N


def whole_components(ends: Ints) -> list[tuple[int, int]] | None:
    """Ranges of rows of up to MAX_DENSE samples; `ends` are the components' last rows plus 1.

    None if a component is larger.
    """
    blocks, start = [], 0
    while start < ends[-1]:
        fitting = np.searchsorted(ends, start + MAX_DENSE, side="right")
        stop = int(ends[fitting - 1]) if fitting else 0
        if stop <= start:
            return None
        blocks.append((start, stop))
        start = stop
    return blocks


def labels_on_device(
    indptr: npt.NDArray[np.integer],
    indices: Ints,
    min_samples: int,
    device: str,
    start: int,
    stop: int,
) -> Labels:
    """Labels of a block's rows. Only the edges are uploaded; the matrix is filled on the device."""
    columns = indices[indptr[start] : indptr[stop]]
    degrees = to_device(np.diff(indptr[start : stop + 1]), device)
    row_E = torch.repeat_interleave(degrees, output_size=len(columns))
    distance_BB = torch.ones((stop - start, stop - start), device=device)
    distance_BB[row_E, to_device(columns, device).long() - start] = 0
    distance_BB.fill_diagonal_(0)
    return cuml_labels(distance_BB, min_samples).astype(np.int64)


def cuml_labels(distance_BB: torch.Tensor, min_samples: int) -> npt.NDArray[np.integer]:
    """cuML's labels of a matrix: 0 for neighbours, 1 for the rest.

    It doesn't say to which of two clusters a border sample goes.
    """
    import cuml  # takes seconds, once in a process's life

    torch.cuda.current_stream(distance_BB.device).synchronize()  # cuML's work is on another stream
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(distance_BB.device)
    fitted = cuml.DBSCAN(
        eps=0.5,  # between 0 and 1, so that its rounding to fp32 can't matter
        min_samples=min_samples,
        metric="precomputed",
        max_mbytes_per_batch=free >> 21,  # half of it
        calc_core_sample_indices=False,  # which would copy nearly all of the matrix
        output_type="numpy",
    ).fit(distance_BB)
    labels_B: npt.NDArray[np.integer] = np.asarray(fitted.labels_)
    return labels_B
