"""eps from the data, and DBSCAN (Ester et al. 1996) on sparse distances.

The backends differ only in who finds the core samples and joins them to components. What a
neighbour is, how clusters are numbered and where border samples go is settled here, once, so
that all backends give the same labels.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from cluster.rerank import ZERO
from daal.errors import ConfigError, LabelError

Backend: TypeAlias = Literal["auto", "sklearn", "components", "cuml"]
Labels: TypeAlias = npt.NDArray[np.int64]
Cores: TypeAlias = tuple[npt.NDArray[np.bool_], Labels]

TOLERANCE = 1e-6  # Jaccard distances pile up on fractions, and eps may be one of them
MAX_DENSE = 8192  # samples in a dense block for cuML: 256 MB of fp32


def num_smallest(num_samples: int, num_zero_pairs: int, p: float) -> int:
    """How many pairs the share p selects: of all pairs of samples but those at distance 0.

    Raises LabelError if that is none.
    """
    num_pairs = num_samples * (num_samples - 1) // 2 - num_zero_pairs
    if num_pairs == 0:
        raise LabelError(
            f"eps can't be estimated: all {num_samples} samples are at distance 0 from each other."
        )
    num_selected = int(np.round(p * num_pairs))
    if num_selected == 0:
        raise LabelError(
            f"p={p:g} selects none of the {num_pairs} pairs of {num_samples} samples; "
            f"use p={_smallest_p(num_pairs):g} or more, or more images."
        )
    return min(num_selected, num_pairs)


def _smallest_p(num_pairs: int) -> float:
    """The smallest p of three digits that selects a pair (half a pair rounds to none)."""
    p = 0.5 / num_pairs
    step = 10.0 ** (np.floor(np.log10(p)) - 2)
    return float(f"{(np.floor(p / step) + 1) * step:.2e}")


def estimate_eps(distance: csr_array, p: float) -> float:
    """Mean of the smallest share p of all distances (the paper's Learning section).

    `distance`: symmetric, absent pairs count as 1. Each pair counts once, the diagonal not at
    all, and neither do distances up to 1e-6: copies of an image say nothing about identity
    (Song et al. 2018 leave out zeros). `distance` may leave out large distances as long as it
    holds all of the smallest share p.
    Raises LabelError if p selects no pair, naming the smallest p that does.
    """
    upper = distance.indices > _row_of_entry(distance)
    values = distance.data[upper].astype(np.float64)
    is_zero = values <= ZERO
    num_selected = num_smallest(distance.shape[0], int(is_zero.sum()), p)
    values = values[~is_zero]
    if num_selected >= len(values):
        return float((np.sort(values).sum() + num_selected - len(values)) / num_selected)
    # Sorted before they're summed, so that the last bit doesn't depend on partition's order.
    return float(np.sort(np.partition(values, num_selected)[:num_selected]).mean())


def dbscan(distance: csr_array, eps: float, min_samples: int, backend: Backend = "auto") -> Labels:
    """Labels (N,) int64; -1 is an outlier.

    Neighbours are at distance <= eps + 1e-6; a sample is core if it has `min_samples` of them,
    itself counted. Clusters are numbered by their lowest core index; a border sample goes to
    the smallest label among its core neighbours.
    `distance`: symmetric, absent means 1; the diagonal may be absent.
    Raises ConfigError if `backend` is cuml and there is no cuML or no GPU.
    """
    backend = resolve_backend(backend)
    if eps + TOLERANCE >= 1:  # the pairs that aren't stored are neighbours, too
        all_in_one = distance.shape[0] >= min_samples
        return np.full(distance.shape[0], 0 if all_in_one else -1, np.int64)
    graph = neighbour_graph(distance, eps)
    if backend == "sklearn":
        is_core, component = _cores_by_sklearn(graph, min_samples)
    elif backend == "components":
        is_core, component = _cores_by_components(graph, min_samples)
    else:
        is_core, component = cores_by_dense_blocks(graph, min_samples, _cuml_cores)
    return number_clusters(graph, is_core, component)


def cuml_available() -> bool:
    """Whether cuML can be imported and sees a GPU."""
    if not torch.cuda.is_available():
        return False
    try:
        import cuml  # noqa: F401
    except ImportError:
        return False
    return True


def resolve_backend(backend: Backend) -> Literal["sklearn", "components", "cuml"]:
    """`auto` is cuml where it can run, else components. Raises ConfigError; see `dbscan`."""
    if backend == "auto":
        return "cuml" if cuml_available() else "components"
    if backend == "cuml" and not cuml_available():
        raise ConfigError(
            "cluster.backend=cuml needs a GPU and the package cuml, and one of them is missing "
            "here; use auto, components or sklearn, which give the same labels."
        )
    return backend


def neighbour_graph(distance: csr_array, eps: float) -> csr_array:
    """Who is whose neighbour: int8 ones, no diagonal. The only place where eps is compared."""
    rows = _row_of_entry(distance)
    # In fp64: against an fp32 array NumPy would round eps + 1e-6 to fp32 first.
    is_neighbour = (distance.data.astype(np.float64) <= eps + TOLERANCE) & (
        rows != distance.indices
    )
    counts = np.bincount(rows[is_neighbour], minlength=distance.shape[0])
    indptr = np.concatenate(([0], np.cumsum(counts)))
    indices = distance.indices[is_neighbour]
    return csr_array((np.ones(len(indices), np.int8), indices, indptr), shape=distance.shape)


def number_clusters(
    graph: csr_array, is_core_N: npt.NDArray[np.bool_], component_N: Labels
) -> Labels:
    """Labels from core flags and the component of every core sample (any distinct numbers)."""
    num_samples = graph.shape[0]
    unlabelled = np.int64(num_samples)  # above every label
    labels = np.full(num_samples, unlabelled)
    _, first_core, number = np.unique(
        component_N[is_core_N], return_index=True, return_inverse=True
    )
    labels[is_core_N] = np.argsort(np.argsort(first_core))[number]
    rows = _row_of_entry(graph)
    reaches = ~is_core_N[rows] & is_core_N[graph.indices]
    np.minimum.at(labels, rows[reaches], labels[graph.indices[reaches]])
    labels[labels == unlabelled] = -1
    return labels


# ---- Who is core, and joined to whom -------------------------------------------------------


def _cores_by_components(graph: csr_array, min_samples: int) -> Cores:
    is_core = np.diff(graph.indptr) + 1 >= min_samples
    core = np.flatnonzero(is_core)
    component = np.full(graph.shape[0], -1, np.int64)
    component[core] = connected_components(graph[core][:, core], directed=False)[1]
    return is_core, component


def _cores_by_sklearn(graph: csr_array, min_samples: int) -> Cores:
    from sklearn.cluster import DBSCAN

    # It adds the diagonal itself, and takes whatever is stored and <= eps for a neighbour.
    fitted = DBSCAN(eps=1.0, min_samples=min_samples, metric="precomputed").fit(
        graph.astype(np.float64)
    )
    return _cores_of(fitted.core_sample_indices_, fitted.labels_)


def cores_by_dense_blocks(
    graph: csr_array,
    min_samples: int,
    dense_cores: Callable[[npt.NDArray[np.float32], int], Cores],
    max_dense: int = MAX_DENSE,
) -> Cores:
    """Core samples and their components from a clusterer that only takes dense matrices.

    No cluster crosses the connected components of the graph, so these are packed into blocks
    of at most `max_dense` samples. `dense_cores(distance_BB, min_samples)` gets 0 for
    neighbours and 1 for the rest, and returns its core flags and labels. A component larger
    than `max_dense` doesn't fit and is solved on the sparse graph.
    """
    is_core = np.zeros(graph.shape[0], np.bool_)
    component = np.full(graph.shape[0], -1, np.int64)
    num_found = 0
    for members in pack_components(graph, min_samples, max_dense):
        block = graph[members][:, members]
        if len(members) > max_dense:
            is_core[members], found = _cores_by_components(block, min_samples)
        else:
            distance_BB = 1 - block.toarray().astype(np.float32)
            np.fill_diagonal(distance_BB, 0)
            is_core[members], found = dense_cores(distance_BB, min_samples)
        component[members] = found + num_found
        num_found += len(members)
    return is_core, component


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


def _cuml_cores(distance_BB: npt.NDArray[np.float32], min_samples: int) -> Cores:
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
    return _cores_of(core_indices[core_indices >= 0], np.asarray(fitted.labels_))


def _cores_of(core_indices: Any, labels: Any) -> Cores:
    is_core = np.zeros(len(labels), np.bool_)
    is_core[core_indices] = True
    return is_core, np.where(is_core, labels, -1).astype(np.int64)


def _row_of_entry(matrix: csr_array) -> npt.NDArray[np.int32]:
    return np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))
