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

MAX_DENSE = 50_000  # samples of cuML's matrix: 10 GB


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
    """By cuML's DBSCAN, which takes dense matrices only; by components where that is too large."""
    num_samples, labels = graph.shape[0], None
    if num_samples <= MAX_DENSE:
        labels = runner.on_device(
            "dbscan: cuml", labels_on_device, [(0, num_samples)], graph.indptr, graph.indices,
            min_samples,
        )  # fmt: skip
    return join_by_components(graph, min_samples) if labels is None else labels[0]


def labels_on_device(
    indptr: npt.NDArray[np.integer], indices: Ints, min_samples: int, device: str, *_: int
) -> Labels:
    """Only the edges are uploaded; the matrix is filled on the device."""
    row_E = torch.repeat_interleave(to_device(np.diff(indptr), device), output_size=len(indices))
    distance_NN = torch.ones((len(indptr) - 1, len(indptr) - 1), device=device)
    distance_NN[row_E, to_device(indices, device).long()] = 0
    distance_NN.fill_diagonal_(0)
    return cuml_labels(distance_NN, min_samples).astype(np.int64)


def cuml_labels(distance_NN: torch.Tensor, min_samples: int) -> npt.NDArray[np.integer]:
    """cuML's labels of a matrix: 0 for neighbours, 1 for the rest.

    It doesn't say to which of two clusters a border sample goes.
    """
    import cuml  # takes seconds, once in a process's life

    torch.cuda.current_stream(distance_NN.device).synchronize()  # cuML's work is on another stream
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(distance_NN.device)
    fitted = cuml.DBSCAN(
        eps=0.5,  # between 0 and 1, so that its rounding to fp32 can't matter
        min_samples=min_samples,
        metric="precomputed",
        max_mbytes_per_batch=free >> 21,  # half of it
        calc_core_sample_indices=False,  # which would copy nearly all of the matrix
        output_type="numpy",
    ).fit(distance_NN)
    labels_N: npt.NDArray[np.integer] = np.asarray(fitted.labels_)
    return labels_N
