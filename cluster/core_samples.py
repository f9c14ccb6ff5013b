"""DBSCAN's core samples and what joins them, on the sparse graph."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from cluster.arrays import Labels

# Which samples are core, and a number for the component of each that is (any for the others).
Cores: TypeAlias = tuple[npt.NDArray[np.bool_], Labels]


def core_flags(graph: csr_array, min_samples: int) -> npt.NDArray[np.bool_]:
    """Which samples have `min_samples` neighbours, themselves counted."""
    is_core: npt.NDArray[np.bool_] = np.diff(graph.indptr) + 1 >= min_samples
    return is_core


def cores_by_components(graph: csr_array, min_samples: int) -> Cores:
    """By the degrees, and the connected components of the core samples' graph."""
    is_core = core_flags(graph, min_samples)
    core = np.flatnonzero(is_core)
    component = np.full(graph.shape[0], -1, np.int64)
    component[core] = connected_components(graph[core][:, core], directed=False)[1]
    return is_core, component


def cores_by_sklearn(graph: csr_array, min_samples: int) -> Cores:
    """By scikit-learn's DBSCAN."""
    from sklearn.cluster import DBSCAN  # takes a second, and 130 MB

    # It adds the diagonal itself, and takes whatever is stored and <= eps for a neighbour.
    fitted = DBSCAN(eps=1.0, min_samples=min_samples, metric="precomputed").fit(
        graph.astype(np.float64)
    )
    is_core = np.zeros(graph.shape[0], np.bool_)
    is_core[fitted.core_sample_indices_] = True
    return is_core, fitted.labels_.astype(np.int64)
