"""DBSCAN (Ester et al. 1996) on sparse distances, with eps by a rule.

The backends differ only in who finds the core samples and joins them to components. What a
neighbour is, how clusters are numbered and where border samples go is settled here, once, so
that all backends give the same labels.
"""

from typing import Any, Literal, NamedTuple, assert_never, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array

from cluster.arrays import Labels
from cluster.clustering import Clustering, giant_size, numbered_by_sample
from cluster.compiled import kernel
from cluster.core_samples import cores_by_components, cores_by_sklearn
from cluster.dense_blocks import cores_by_dense_blocks, cuml_labels, most_dense
from cluster.eps import TOLERANCE, EpsRule, distances_for, reach
from cluster.pairs import Pairs, row_of_entry, symmetric
from cluster.run import Runner, on_threads
from daal.config import Backend, ClusterConfig
from daal.errors import ConfigError, LabelError

MAX_BACKOFFS = 4  # steps back from a giant cluster before giving up


class FoundBackend(NamedTuple):
    """A backend that can run here, and how many samples a dense block of it holds."""

    name: Literal["sklearn", "components", "cuml"]
    max_dense: int = 0


class Dbscan:
    """`cluster.clustering.Clusterer`: DBSCAN, stepping back while there is a giant cluster."""

    def __init__(self, runner: Runner, config: ClusterConfig, eps: float | None = None) -> None:
        self.runner, self.config, self.eps = runner, config, eps
        self.backend = find_backend(runner, config.backend)

    def cluster(self, pairs: Pairs) -> Clustering:
        config, num_samples = self.config, pairs.num_samples
        rule = EpsRule.of(config, num_samples, kept=self.eps)
        # The distances computed first serve all steps, since each needs fewer of them.
        upper = distances_for(pairs, rule)
        distance = symmetric(upper)
        first_eps, num_backoffs = None, 0
        while True:
            try:
                eps = rule.eps(upper.data, num_samples)
            except LabelError as error:
                if num_backoffs == 0:
                    raise
                raise LabelError(f"Steps back from a giant cluster led nowhere: {error}") from None
            first_eps = eps if first_eps is None else first_eps
            notes: list[str] = []
            labels = dbscan(
                distance,
                eps,
                config.min_samples,
                self.backend,
                samples_N=pairs.samples_N,
                runner=self.runner,
                notes=notes,
            )
            sizes = np.bincount(labels[labels >= 0])
            if sizes.max(initial=0) <= giant_size(num_samples, config.max_cluster_share):
                break
            if num_backoffs == MAX_BACKOFFS:
                raise LabelError(
                    f"One cluster holds {sizes.max()} of {num_samples} images even after "
                    f"{num_backoffs} step(s) back, to eps={eps:.4f}; use a smaller {rule.setting}, "
                    + ("cluster.eps near 0.5 in its place, " if rule.is_share else "")
                    + "or a better source model."
                )
            num_backoffs += 1
            rule = rule.smaller()
        if len(sizes) < config.min_clusters:
            raise LabelError(
                f"DBSCAN found {len(sizes)} cluster(s) at eps={eps:.4f}, fewer than "
                f"min_clusters={config.min_clusters}; use a larger {rule.setting}, a smaller "
                "cluster.min_samples, or more images."
            )
        if num_backoffs:
            notes.append(
                f"A giant cluster made {num_backoffs} step(s) back necessary: eps is now {eps:.4f}"
                + (f" (p={rule.p:.3g})." if rule.is_share else ".")
            )
        # More distances than up to eps may be there: how many depends on how they were found.
        keeps_more = f"a larger {rule.setting}, or a smaller cluster.min_samples,"
        return Clustering(
            labels,
            distance,
            reach(eps),
            keeps_more,
            eps=eps,
            first_eps=first_eps,
            p=rule.p,
            num_backoffs=num_backoffs,
            notes=tuple(notes),
        )


@on_threads
def dbscan(
    distance: csr_array,
    eps: float,
    min_samples: int,
    backend: Backend | FoundBackend = "auto",
    *,
    samples_N: npt.NDArray[np.integer] | None = None,
    runner: Runner | None = None,
    notes: list[str] | None = None,
) -> Labels:
    """Labels (N,) int64; -1 is an outlier.

    Neighbours are at distance <= eps + 1e-6; a sample is core if it has `min_samples` of them,
    itself counted. Clusters are numbered by their lowest core index; a border sample goes to
    the smallest label among its core neighbours.
    `distance`: symmetric, absent means 1; the diagonal may be absent. With `samples_N`, its row r
    (and that of the labels) is sample samples_N[r], which clusters are numbered by. `runner` runs
    cuML's blocks. `notes` takes sentences that a user should read.
    Raises ConfigError if `backend` is cuml and there is no cuML or no GPU.
    """
    assert runner is not None
    found = backend if isinstance(backend, FoundBackend) else find_backend(runner, backend)
    if eps + TOLERANCE >= 1:  # the pairs that aren't stored are neighbours, too
        all_in_one = distance.shape[0] >= min_samples
        return np.full(distance.shape[0], 0 if all_in_one else -1, np.int64)
    graph = neighbour_graph(distance, eps)
    match found.name:
        case "sklearn":
            is_core, component = cores_by_sklearn(graph, min_samples)
        case "components":
            is_core, component = cores_by_components(graph, min_samples)
        case "cuml":
            (is_core, component), num_large = cores_by_dense_blocks(
                runner, graph, min_samples, cuml_labels, found.max_dense
            )
            if num_large and notes is not None:
                notes.append(
                    f"{num_large} component(s) of the eps-graph were too large for a dense matrix "
                    "on the GPU, and were clustered on the CPU."
                )
        case _:
            assert_never(found.name)
    if samples_N is None:
        samples_N = np.arange(graph.shape[0])
    return number_clusters(graph, is_core, component, samples_N)


def cuml_available() -> bool:
    """Whether cuML can be imported and sees a GPU."""
    if not torch.cuda.is_available():
        return False
    try:
        import cuml  # noqa: F401
    except Exception:  # not only ImportError: one that doesn't fit the driver fails in its own way
        return False
    return True


def find_backend(runner: Runner, backend: Backend) -> FoundBackend:
    """The backend that runs where the runner computes: `auto` is cuml on a GPU that has it, else
    components.

    Raises ConfigError; see `dbscan`.
    """
    if backend not in get_args(Backend):
        raise ConfigError(
            f"backend={backend} is unknown; use one of {', '.join(get_args(Backend))}."
        )
    if backend == "sklearn" or backend == "components":
        return FoundBackend(backend)
    if runner.device != "cpu":
        found: FoundBackend | None
        for found in runner.on_device("dbscan: backend", cuml_there, [(0, 1)]) or []:
            if found is not None:
                return found
    if backend == "cuml":
        raise ConfigError(
            "cluster.backend=cuml needs a GPU and the package cuml, and one of them is missing "
            "here; use auto, components or sklearn, which give the same labels."
        )
    return FoundBackend("components")


def cuml_there(device: str, *_: int) -> FoundBackend | None:
    """cuML with the room that it has, if it is there."""
    return FoundBackend("cuml", most_dense(device)) if cuml_available() else None


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
    samples_N: npt.NDArray[np.integer],
) -> Labels:
    """Labels from core flags and the component of every core sample (any distinct numbers)."""
    unlabelled = np.int64(graph.shape[0])  # above every label
    labels = np.full(graph.shape[0], unlabelled)
    labels[is_core_N] = numbered_by_sample(component_N[is_core_N], samples_N[is_core_N])
    rows = row_of_entry(graph)
    reaches = ~is_core_N[rows] & is_core_N[graph.indices]
    np.minimum.at(labels, rows[reaches], labels[graph.indices[reaches]])
    labels[labels == unlabelled] = -1
    return labels
