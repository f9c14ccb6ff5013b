"""DBSCAN (Ester et al. 1996) on sparse distances.

The backends differ only in who finds the core samples and joins them to components. What a
neighbour is, how clusters are numbered and where border samples go is settled here, once, so
that all backends give the same labels.
"""

from typing import Any, Literal, NamedTuple, assert_never, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array

from cluster.blocks import kernel
from cluster.core_samples import Cores, Labels, cores_by_components
from cluster.dense_blocks import cores_by_dense_blocks, cuml_labels, most_dense
from cluster.eps import TOLERANCE
from cluster.eps import estimate_eps as estimate_eps
from cluster.rerank import row_of_entry
from cluster.runner import Runner, on_threads
from daal.config import Backend
from daal.errors import ConfigError


class Clusterer(NamedTuple):
    """A backend that is no question any more, and how many samples a dense block of it holds."""

    name: Literal["sklearn", "components", "cuml"]
    max_dense: int = 0


@on_threads
def dbscan(
    distance: csr_array,
    eps: float,
    min_samples: int,
    backend: Backend | Clusterer = "auto",
    *,
    order_N: npt.NDArray[np.integer] | None = None,
    runner: Runner | None = None,
    notes: list[str] | None = None,
) -> Labels:
    """Labels (N,) int64; -1 is an outlier.

    Neighbours are at distance <= eps + 1e-6; a sample is core if it has `min_samples` of them,
    itself counted. Clusters are numbered by their lowest core index; a border sample goes to
    the smallest label among its core neighbours.
    `distance`: symmetric, absent means 1; the diagonal may be absent. With `order_N`, its row r
    is sample order_N[r]. `backend` may be a `Clusterer` that was found before; `runner` runs
    cuML's blocks. `notes` takes sentences that a user should read.
    Raises ConfigError if `backend` is cuml and there is no cuML or no GPU.
    """
    assert runner is not None
    clusterer = backend if isinstance(backend, Clusterer) else find_clusterer(runner, backend)
    if eps + TOLERANCE >= 1:  # the pairs that aren't stored are neighbours, too
        all_in_one = distance.shape[0] >= min_samples
        return np.full(distance.shape[0], 0 if all_in_one else -1, np.int64)
    graph = neighbour_graph(distance, eps)
    match clusterer.name:
        case "sklearn":
            is_core, component = _cores_by_sklearn(graph, min_samples)
        case "components":
            is_core, component = cores_by_components(graph, min_samples)
        case "cuml":
            (is_core, component), num_large = cores_by_dense_blocks(
                runner, graph, min_samples, cuml_labels, clusterer.max_dense
            )
            if num_large and notes is not None:
                notes.append(
                    f"{num_large} component(s) of the eps-graph were too large for a dense matrix "
                    "on the GPU, and were clustered on the CPU."
                )
        case _:
            assert_never(clusterer.name)
    if order_N is None:
        order_N = np.arange(graph.shape[0])
    return number_clusters(graph, is_core, component, order_N)


def cuml_available() -> bool:
    """Whether cuML can be imported and sees a GPU."""
    if not torch.cuda.is_available():
        return False
    try:
        import cuml  # noqa: F401
    except Exception:  # not only ImportError: one that doesn't fit the driver fails in its own way
        return False
    return True


def find_clusterer(runner: Runner, backend: Backend) -> Clusterer:
    """Who clusters where the runner computes: `auto` is cuml on a GPU that has it, else components.

    Raises ConfigError; see `dbscan`.
    """
    if backend not in get_args(Backend):
        raise ConfigError(
            f"backend={backend} is unknown; use one of {', '.join(get_args(Backend))}."
        )
    if backend == "sklearn" or backend == "components":
        return Clusterer(backend)
    if runner.device != "cpu":
        found: Clusterer | None
        for found in runner.on_device("dbscan: backend", cuml_there, [(0, 1)]) or []:
            if found is not None:
                return found
    if backend == "cuml":
        raise ConfigError(
            "cluster.backend=cuml needs a GPU and the package cuml, and one of them is missing "
            "here; use auto, components or sklearn, which give the same labels."
        )
    return Clusterer("components")


def cuml_there(device: str, *_: int) -> Clusterer | None:
    """cuML with the room that it has, if it is there."""
    return Clusterer("cuml", most_dense(device)) if cuml_available() else None


def neighbour_graph(distance: csr_array, eps: float) -> csr_array:
    """Who is whose neighbour: int8 ones, no diagonal. The only place where eps is compared."""
    # In fp64: eps + 1e-6 rounded to fp32 would be another number.
    indptr, indices = _graph_kernel(
        distance.indptr, distance.indices, distance.data, np.float64(eps + TOLERANCE)
    )
    return csr_array((np.ones(len(indices), np.int8), indices, indptr), shape=distance.shape)


@kernel
def _graph_kernel(indptr: Any, indices: Any, data: Any, limit: float) -> Any:
    out_indptr = np.zeros(len(indptr), np.int64)
    for i in range(len(indptr) - 1):
        for entry in range(indptr[i], indptr[i + 1]):
            out_indptr[i + 1] += np.float64(data[entry]) <= limit and indices[entry] != i
    out_indptr = np.cumsum(out_indptr)
    out_indices = np.empty(out_indptr[-1], np.int32)
    end = 0
    for i in range(len(indptr) - 1):
        for entry in range(indptr[i], indptr[i + 1]):
            if np.float64(data[entry]) <= limit and indices[entry] != i:
                out_indices[end] = indices[entry]
                end += 1
    return out_indptr, out_indices


def number_clusters(
    graph: csr_array,
    is_core_N: npt.NDArray[np.bool_],
    component_N: Labels,
    order_N: npt.NDArray[np.integer],
) -> Labels:
    """Labels from core flags and the component of every core sample (any distinct numbers).

    Rows of the arguments stand for samples order_N[row]; the labels are in the samples' order.
    """
    num_samples = graph.shape[0]
    unlabelled = np.int64(num_samples)  # above every label
    _, number = np.unique(component_N[is_core_N], return_inverse=True)
    first_core = np.full(number.max(initial=-1) + 1, num_samples)
    np.minimum.at(first_core, number, order_N[is_core_N])
    label_of_row = np.full(num_samples, unlabelled)
    label_of_row[is_core_N] = np.argsort(np.argsort(first_core))[number]
    rows = row_of_entry(graph)
    reaches = ~is_core_N[rows] & is_core_N[graph.indices]
    np.minimum.at(label_of_row, rows[reaches], label_of_row[graph.indices[reaches]])
    label_of_row[label_of_row == unlabelled] = -1
    labels = np.empty_like(label_of_row)
    labels[order_N] = label_of_row
    return labels


def _cores_by_sklearn(graph: csr_array, min_samples: int) -> Cores:
    from sklearn.cluster import DBSCAN

    # It adds the diagonal itself, and takes whatever is stored and <= eps for a neighbour.
    fitted = DBSCAN(eps=1.0, min_samples=min_samples, metric="precomputed").fit(
        graph.astype(np.float64)
    )
    is_core = np.zeros(graph.shape[0], np.bool_)
    is_core[fitted.core_sample_indices_] = True
    return is_core, fitted.labels_.astype(np.int64)
