"""k-reciprocal Jaccard distance (Zhong et al. 2017), sparse and exact.

    neighbours -> encodings V -> inverted index
    -> distance = 1 - m / (|V[i]| + |V[j]| - m),  m = sum_g min(V[i, g], V[j, g])

(Rows of V sum to 1, so that is 1 - m / (2 - m); with the rounded sums equal rows are at distance
exactly 0.)

Samples without a common neighbour are at distance exactly 1, which is most pairs: those are
never stored, and no more of the others than somebody asks for.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from cluster.blocks import kernel, row_blocks
from cluster.copies import Longs
from cluster.encoding import Dialect, Reciprocity, encode, stack
from cluster.near_pairs import distance_of, index_kernel, pairs_kernel
from cluster.neighbours import nearest_neighbours
from cluster.products import Ints
from cluster.refine import fixed_point_scale
from cluster.runner import Handle, Runner, on_threads, over_blocks
from daal.errors import LabelError

NUM_BINS = 1 << 17  # of the distance histogram
ZERO = 1e-6  # distances up to here count as 0: equal rows may differ by rounding elsewhere


class InvertedIndex(NamedTuple):
    """Who has weight on sample g: entries[starts[g]:starts[g + 1]] are (sample, weight) int32, by
    sample. `sums_N` int32: the weights of each row."""

    starts: Longs
    entries_E2: Ints
    sums_N: Ints


@on_threads
def jaccard_distance(
    features_ND: npt.NDArray[np.floating],
    k1: int = 20,
    k2: int = 6,
    max_distance: float = 1.0,
    *,
    dialect: Dialect = "zhong",
    runner: Runner | None = None,
    num_blocks: int | None = None,
) -> csr_array:
    """Jaccard distance of k-reciprocal encodings between all samples (Zhong et al. 2017).

    `features_ND`: neighbours are by Euclidean distance. `dialect`: see `Reciprocity`; "faiss" is
    meant for features of length 1.
    Returns a symmetric float32 (N, N) with sorted indices, holding the distances below
    `max_distance` only; with 1.0, absent means exactly 1. Zeros are explicit entries, the
    diagonal too, so scikit-learn's DBSCAN takes it as it is. Don't add such matrices or call
    `eliminate_zeros`: SciPy would drop the zeros, and copies would stop being neighbours.
    Raises LabelError if a feature isn't finite, or the longest isn't between 1e-15 and 1e15.
    """
    assert runner is not None
    features = np.ascontiguousarray(features_ND, np.float32)
    longest = float(np.linalg.norm(features, axis=1).max(initial=0))
    if not (1e-15 <= longest <= 1e15 or longest == 0):
        raise LabelError(
            f"The longest feature has length {longest:g}; features must be finite, and of a "
            "scale that fp32 products can hold: divide them by their lengths."
        )
    num_blocks = num_blocks or runner.default_num_blocks(len(features))
    blocks = row_blocks(len(features), num_blocks)
    reciprocity = Reciprocity.of(k1, dialect)
    neighbours = nearest_neighbours(runner, features, max(reciprocity.num_full, k2), num_blocks)
    encodings, order = encode(
        runner,
        runner.share(features),
        fixed_point_scale(features),
        *(neighbours, reciprocity, k2, blocks),
    )
    index = invert(runner, encodings)
    distance = symmetric(distances_below(runner, encodings, index, max_distance, blocks))
    number_N = np.argsort(runner.collect([order])[0])
    distance = distance[number_N][:, number_N]
    distance.sort_indices()
    return distance


def invert(runner: Runner, encodings: Handle) -> Handle:
    """Handle of the encodings' `InvertedIndex`."""
    return runner.submit("jaccard: index", inverted_index, encodings)


def distances_below(
    runner: Runner,
    encodings: Handle,
    index: Handle,
    max_distance: float,
    blocks: list[tuple[int, int]],
) -> csr_array:
    """Distances below `max_distance`, float32, each pair once: the strict upper triangle."""
    parts = over_blocks(
        runner, "jaccard: distances", pairs_below, encodings, index, max_distance, blocks=blocks
    )
    return stack(*runner.collect(parts))


def distance_histogram(
    runner: Runner,
    encodings: Handle,
    index: Handle,
    blocks: list[tuple[int, int]],
    every: int = 1,
) -> tuple[int, Longs]:
    """(number of pairs at distance 0, number in each of `NUM_BINS` equal bins of (0, 1)).

    Each pair counts once. With `every` = n, only the pairs of every n-th row with later ones.
    """
    parts = over_blocks(
        runner, "jaccard: histogram", histogram_block, encodings, index, every, blocks=blocks
    )
    counts = np.sum(runner.collect(parts), axis=0)
    return int(counts[0]), counts[1:]


def symmetric(upper: csr_array) -> csr_array:
    """Both triangles and a diagonal of explicit zeros from a sorted strict upper triangle."""
    indptr, indices, data = _symmetric_kernel(upper.indptr, upper.indices, upper.data)
    return csr_array((data, indices, indptr), shape=upper.shape)


def row_of_entry(matrix: csr_array) -> npt.NDArray[np.int32]:
    """The row of each stored entry, in order."""
    return np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))


# ---- Stages -----------------------------------------------------------------------------


def inverted_index(encodings: csr_array) -> InvertedIndex:
    """The encodings by column."""
    # NumPy asks for huge pages where numba doesn't: claiming the memory takes half as long.
    # Sample and weight side by side: whoever looks at a column waits for memory once.
    entries = np.empty((encodings.nnz, 2), np.int32)
    starts, sums = index_kernel(
        *(encodings.indptr, encodings.indices, encodings.data),
        *(np.empty(encodings.nnz, np.uint16), entries),
    )
    return InvertedIndex(starts, entries, sums)


def pairs_below(
    encodings: csr_array,
    index: InvertedIndex,
    max_distance: float,
    row_start: int,
    row_stop: int,
) -> csr_array:
    """Distances below `max_distance` of rows row_start..row_stop to all later samples.

    Only samples that are met in a common column are ever touched.
    """
    indptr, indices, distances = pairs_kernel(
        *(encodings.indptr, encodings.indices, encodings.data, *index),
        *(max_distance, row_start, row_stop),
    )
    shape = (row_stop - row_start, encodings.shape[0])
    return csr_array((distances, indices, indptr), shape=shape)


def histogram_block(
    encodings: csr_array,
    index: InvertedIndex,
    every: int,
    row_start: int,
    row_stop: int,
) -> Longs:
    """Counts of the same distances: first the zeros, then `NUM_BINS` equal bins of (0, 1)."""
    counts: Longs = _histogram_kernel(
        *(encodings.indptr, encodings.indices, encodings.data, *index),
        *(every, row_start, row_stop),
    )
    return counts


# ---- Kernels ----------------------------------------------------------------------------


@kernel
def _meet_column(
    i: int,
    weight: int,
    g: int,
    starts: Longs,
    entries: Ints,
    overlap_N: Ints,
    met: Ints,
    num_met: int,
) -> int:
    """Add min(V[i, g], V[j, g]) to overlap_N[j], j > i, and note who is met for the first time;
    returns how many are noted."""
    for other in range(starts[g + 1] - 1, starts[g] - 1, -1):
        j = entries[other, 0]
        if j <= i:
            break
        overlap = overlap_N[j]
        met[num_met] = j  # stays if it is new; without a branch, which would be guessed wrong
        num_met += overlap == 0
        overlap_N[j] = overlap + min(weight, entries[other, 1])
    return num_met


@kernel
def _histogram_kernel(
    indptr: Any,
    indices: Any,
    weights: Any,
    starts: Longs,
    entries: Ints,
    sums: Ints,
    every: int,
    row_start: int,
    row_stop: int,
) -> Any:
    num_samples = len(indptr) - 1
    overlap_N = np.zeros(num_samples, np.int32)
    met = np.empty(num_samples + 1, np.int32)
    counts = np.zeros(1 + NUM_BINS, np.int64)
    for i in range(row_start + (-row_start) % every, row_stop, every):
        num_met = 0
        for entry in range(indptr[i], indptr[i + 1]):
            num_met = _meet_column(
                *(i, weights[entry], indices[entry], starts, entries, overlap_N, met, num_met)
            )
        for m in range(num_met):
            j = met[m]
            distance = distance_of(overlap_N[j], np.int64(sums[i]) + sums[j])
            overlap_N[j] = 0
            if distance <= ZERO:
                counts[0] += 1
            elif distance < 1:
                counts[1 + int(distance * NUM_BINS)] += 1
    return counts


@kernel
def _symmetric_kernel(upper_indptr: Any, upper_indices: Any, upper_data: Any) -> Any:
    num_samples = len(upper_indptr) - 1
    indptr = np.zeros(num_samples + 1, np.int64)
    for i in range(num_samples):
        indptr[i + 1] += 1 + upper_indptr[i + 1] - upper_indptr[i]
        for entry in range(upper_indptr[i], upper_indptr[i + 1]):
            indptr[upper_indices[entry] + 1] += 1
    indptr = np.cumsum(indptr)
    indices = np.empty(indptr[-1], np.int32)
    data = np.empty(indptr[-1], upper_data.dtype)
    place = indptr[:-1].copy()
    # Rows come in ascending order, so each row's lower triangle is full, and sorted, before
    # its own turn.
    for i in range(num_samples):
        indices[place[i]] = i
        data[place[i]] = 0
        place[i] += 1
        for entry in range(upper_indptr[i], upper_indptr[i + 1]):
            j = upper_indices[entry]
            indices[place[i]] = j
            data[place[i]] = upper_data[entry]
            place[i] += 1
            indices[place[j]] = i
            data[place[j]] = upper_data[entry]
            place[j] += 1
    return indptr, indices, data
