"""k-reciprocal Jaccard distance (Zhong et al. 2017), sparse and exact.

    neighbours -> reciprocal sets -> weights V -> mean over k2 neighbours -> inverted index
    -> distance = 1 - m / (2 - m),  m = sum_g min(V[i, g], V[j, g])

Samples without a common neighbour are at distance exactly 1, which is most pairs: those are
never stored. Weights are integers in units of 2^-30, and the averaged rows are forced to sum
to 2^30. Sums of integers don't depend on their order, so results don't depend on blocks,
threads or device, and rows that are equal on paper are at distance exactly 0.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, vstack

from cluster.blocks import MapBlocks, kernel, map_threads, row_blocks
from cluster.neighbours import Floats, Neighbours, nearest_neighbours, squared_distance

ONE = 1 << 30  # a weight of 1
NUM_BINS = 1 << 17  # of the distance histogram
ZERO = 1e-6  # distances up to here count as 0: equal rows may differ by rounding elsewhere


def jaccard_distance(
    features_ND: Floats,
    k1: int = 20,
    k2: int = 6,
    max_distance: float = 1.0,
    map_blocks: MapBlocks = map_threads,
    num_blocks: int = 1,
) -> csr_array:
    """Jaccard distance of k-reciprocal encodings between all samples (Zhong et al. 2017).

    `features_ND`: float32, finite; neighbours are by Euclidean distance.
    Returns a symmetric float32 (N, N) with sorted indices, holding the distances below
    `max_distance` only; with 1.0, absent means exactly 1. Zeros are explicit entries, the
    diagonal too, so scikit-learn's DBSCAN takes it as it is. Don't add such matrices or call
    `eliminate_zeros`: SciPy would drop the zeros, and copies would stop being neighbours.
    """
    features_ND = np.ascontiguousarray(features_ND, np.float32)
    neighbours = nearest_neighbours(features_ND, max(k1 + 1, k2), map_blocks, num_blocks)
    blocks = stage_blocks(len(features_ND), num_blocks)
    weights = neighbour_weights(features_ND, neighbours, k1, k2, map_blocks, blocks)
    return distances_below(weights, max_distance, map_blocks, blocks)


def stage_blocks(num_samples: int, num_blocks: int) -> list[tuple[int, int]]:
    """Row blocks of the sparse stages: 8 each for one block, as their work is uneven."""
    return row_blocks(num_samples, num_blocks if num_blocks > 1 else 8)


def neighbour_weights(
    features_ND: Floats,
    neighbours: Neighbours,
    k1: int,
    k2: int,
    map_blocks: MapBlocks,
    blocks: Sequence[tuple[int, int]],
) -> csr_array:
    """The encoding of every sample: int32 (N, N) rows that sum to `ONE`."""
    parts = map_blocks(
        "reciprocal weights", reciprocal_weights, blocks, features_ND, neighbours, k1
    )
    raw = vstack(parts, format="csr")
    parts = map_blocks("average weights", average_rows, blocks, raw, neighbours.indices_NK, k2)
    return vstack(parts, format="csr")


def distances_below(
    weights: csr_array,
    max_distance: float,
    map_blocks: MapBlocks,
    blocks: Sequence[tuple[int, int]],
) -> csr_array:
    """Symmetric distances below `max_distance` from encodings; see `jaccard_distance`."""
    upper = map_blocks(
        "jaccard distances", min_sum_block, blocks, weights, weights.tocsc(), max_distance
    )
    return symmetric(vstack(upper, format="csr"))


def distance_histogram(
    weights: csr_array, map_blocks: MapBlocks, blocks: Sequence[tuple[int, int]]
) -> tuple[int, npt.NDArray[np.int64]]:
    """(number of pairs at distance 0, number in each of `NUM_BINS` equal bins of (0, 1))."""
    parts = map_blocks("jaccard histogram", histogram_block, blocks, weights, weights.tocsc())
    counts = np.sum(parts, axis=0)
    return int(counts[0]), counts[1:]


# ---- Functions of a row block --------------------------------------------------------------


def reciprocal_weights(
    features_ND: Floats, neighbours: Neighbours, k1: int, row_start: int, row_stop: int
) -> csr_array:
    """Gaussian weights over each sample's expanded k-reciprocal set, rows row_start..row_stop.

    R(i, k): the j among i's k nearest (i itself included on top) that have i among theirs.
    R*(i): R(i, k1) and every R(q, k1/2), q in R(i, k1), that shares more than 2/3 of itself
    with R(i, k1). Weights exp(-d2 / max d2) over R*(i), scaled to sum 1 (Zhong et al. 2017,
    sec. 3.2-3.3; distances divided by the row's largest as in their code).
    """
    num_samples = len(neighbours.indices_NK)
    num_full = min(k1 + 1, num_samples)
    num_half = min(round(k1 / 2) + 1, num_samples)  # round is half-to-even: 25 -> 12
    indptr, indices, weights = _weights_kernel(
        features_ND, *neighbours, num_full, num_half, row_start, row_stop
    )
    return csr_array((weights, indices, indptr), shape=(row_stop - row_start, num_samples))


def average_rows(
    weights: csr_array, indices_NK: npt.NDArray[np.int32], k2: int, row_start: int, row_stop: int
) -> csr_array:
    """Mean of `weights` over each sample's k2 nearest (itself included), forced to sum `ONE`.

    Zhong et al. 2017, sec. 3.4 (local query expansion); k2 = 1 changes nothing.
    """
    indptr, indices, averages = _average_kernel(
        weights.indptr, weights.indices, weights.data, indices_NK[:, :k2], row_start, row_stop
    )
    return csr_array((averages, indices, indptr), shape=(row_stop - row_start, weights.shape[1]))


def min_sum_block(
    weights: csr_array, columns: Any, max_distance: float, row_start: int, row_stop: int
) -> csr_array:
    """Distances below `max_distance` of rows row_start..row_stop to all later samples.

    `columns` is `weights` as CSC, the inverted index: only samples met in a common column are
    ever touched.
    """
    indptr, indices, distances = _min_sum_kernel(
        *(weights.indptr, weights.indices, weights.data),
        *(columns.indptr, columns.indices, columns.data),
        *(max_distance, row_start, row_stop),
    )
    return csr_array((distances, indices, indptr), shape=(row_stop - row_start, weights.shape[0]))


def histogram_block(
    weights: csr_array, columns: Any, row_start: int, row_stop: int
) -> npt.NDArray[np.int64]:
    """Counts of the same distances: first the zeros, then `NUM_BINS` equal bins of (0, 1)."""
    counts: npt.NDArray[np.int64] = _histogram_kernel(
        *(weights.indptr, weights.indices, weights.data),
        *(columns.indptr, columns.indices, columns.data),
        *(row_start, row_stop),
    )
    return counts


def symmetric(upper: csr_array) -> csr_array:
    """Both triangles and a diagonal of explicit zeros from a sorted strict upper triangle."""
    indptr, indices, data = _symmetric_kernel(upper.indptr, upper.indices, upper.data)
    return csr_array((data, indices, indptr), shape=upper.shape)


# ---- Kernels -------------------------------------------------------------------------------


@kernel
def _is_among(value: int, row: Any, count: int) -> bool:
    for place in range(count):  # noqa: SIM110 (numba has no any())
        if row[place] == value:
            return True
    return False


@kernel
def _reciprocal_set(indices_NK: Any, i: int, count: int, members: Any) -> int:
    """Write R(i, count - 1) to `members`; returns its size."""
    num_members = 0
    for place in range(count):
        j = indices_NK[i, place]
        if _is_among(i, indices_NK[j], count):
            members[num_members] = j
            num_members += 1
    return num_members


@kernel
def _weights_kernel(
    features_ND: Any,
    indices_NK: Any,
    sq_NK: Any,
    max_sq_N: Any,
    num_full: int,
    num_half: int,
    row_start: int,
    row_stop: int,
) -> Any:
    num_rows = row_stop - row_start
    capacity = min(num_full * (num_half + 1), len(indices_NK))
    indptr = np.zeros(num_rows + 1, np.int64)
    out_indices = np.empty(num_rows * capacity, np.int32)  # pages are claimed when written to
    out_weights = np.empty(num_rows * capacity, np.int32)
    reciprocal = np.empty(num_full, np.int32)
    half = np.empty(num_half, np.int32)
    gaussian = np.empty(capacity, np.float64)
    member_of = np.full(len(indices_NK), -1, np.int32)  # the last row a sample was put in
    end = 0
    for i in range(row_start, row_stop):
        start = end
        num_reciprocal = _reciprocal_set(indices_NK, i, num_full, reciprocal)
        for m in range(num_reciprocal):
            member_of[reciprocal[m]] = i
            out_indices[end] = reciprocal[m]
            end += 1
        for m in range(num_reciprocal):
            num_in_half = _reciprocal_set(indices_NK, reciprocal[m], num_half, half)
            num_shared = 0
            for h in range(num_in_half):
                num_shared += _is_among(half[h], reciprocal, num_reciprocal)
            if 3 * num_shared > 2 * num_in_half:
                for h in range(num_in_half):
                    if member_of[half[h]] != i:
                        member_of[half[h]] = i
                        out_indices[end] = half[h]
                        end += 1
        members = out_indices[start:end]
        members.sort()
        scale = max_sq_N[i] if max_sq_N[i] > 0 else np.float32(1)  # all samples identical
        total = 0.0
        for m in range(len(members)):
            sq = -1.0
            for place in range(num_full):
                if indices_NK[i, place] == members[m]:
                    sq = np.float64(sq_NK[i, place])
            if sq < 0:
                sq = squared_distance(features_ND, i, members[m])
            gaussian[m] = np.exp(-sq / scale)
            total += gaussian[m]
        for m in range(len(members)):
            out_weights[start + m] = np.int32(np.floor(gaussian[m] / total * ONE + 0.5))
        indptr[i - row_start + 1] = end
    return indptr, out_indices[:end].copy(), out_weights[:end].copy()


@kernel
def _average_kernel(
    indptr: Any, indices: Any, weights: Any, nearest: Any, row_start: int, row_stop: int
) -> Any:
    num_rows, num_averaged = row_stop - row_start, nearest.shape[1]
    capacity = 0
    for i in range(row_start, row_stop):
        for place in range(num_averaged):
            q = nearest[i, place]
            capacity += indptr[q + 1] - indptr[q]
    out_indptr = np.zeros(num_rows + 1, np.int64)
    out_indices = np.empty(capacity, np.int32)
    out_weights = np.empty(capacity, np.int32)
    sums = np.zeros(len(indptr) - 1, np.int64)
    end = 0
    for i in range(row_start, row_stop):
        start = end
        for place in range(num_averaged):
            q = nearest[i, place]
            for entry in range(indptr[q], indptr[q + 1]):
                j = indices[entry]
                if sums[j] == 0:
                    out_indices[end] = j
                    end += 1
                sums[j] += weights[entry]
        members = out_indices[start:end]
        members.sort()
        remainder, largest = ONE, start
        for entry in range(start, end):
            j = out_indices[entry]
            average = (2 * sums[j] + num_averaged) // (2 * num_averaged)
            sums[j] = 0
            out_weights[entry] = average
            remainder -= average
            if average > out_weights[largest]:
                largest = entry
        out_weights[largest] += remainder
        out_indptr[i - row_start + 1] = end
    return out_indptr, out_indices[:end].copy(), out_weights[:end].copy()


@kernel
def _overlaps_of_row(
    i: int,
    indptr: Any,
    indices: Any,
    weights: Any,
    column_indptr: Any,
    column_rows: Any,
    column_weights: Any,
    overlap_N: Any,
    met: Any,
) -> int:
    """Add min(V[i, g], V[j, g]) over common g to overlap_N[j], j > i; returns how many j met."""
    num_met = 0
    for entry in range(indptr[i], indptr[i + 1]):
        weight, g = weights[entry], indices[entry]
        for other in range(column_indptr[g + 1] - 1, column_indptr[g] - 1, -1):
            j = column_rows[other]
            if j <= i:
                break
            if overlap_N[j] == 0:
                met[num_met] = j
                num_met += 1
            overlap_N[j] += min(weight, column_weights[other])
    return num_met


@kernel
def _distance(overlap: int) -> Any:
    return np.float32((2 * ONE - 2 * overlap) / (2 * ONE - overlap))


@kernel
def _min_sum_kernel(
    indptr: Any,
    indices: Any,
    weights: Any,
    column_indptr: Any,
    column_rows: Any,
    column_weights: Any,
    max_distance: float,
    row_start: int,
    row_stop: int,
) -> Any:
    num_samples = len(indptr) - 1
    overlap_N = np.zeros(num_samples, np.int64)
    met = np.empty(num_samples, np.int32)
    out_indptr = np.zeros(row_stop - row_start + 1, np.int64)
    out_indices = np.empty(1024, np.int32)
    out_distances = np.empty(1024, np.float32)
    end = 0
    for i in range(row_start, row_stop):
        num_met = _overlaps_of_row(
            i, indptr, indices, weights, column_indptr, column_rows, column_weights, overlap_N, met
        )
        num_kept = 0
        for m in range(num_met):
            j = met[m]
            if _distance(overlap_N[j]) < max_distance:
                met[num_kept] = j
                num_kept += 1
            else:
                overlap_N[j] = 0
        met[:num_kept].sort()
        while end + num_kept > len(out_indices):
            out_indices = np.concatenate((out_indices, np.empty_like(out_indices)))
            out_distances = np.concatenate((out_distances, np.empty_like(out_distances)))
        for m in range(num_kept):
            j = met[m]
            out_indices[end] = j
            out_distances[end] = _distance(overlap_N[j])
            overlap_N[j] = 0
            end += 1
        out_indptr[i - row_start + 1] = end
    return out_indptr, out_indices[:end].copy(), out_distances[:end].copy()


@kernel
def _histogram_kernel(
    indptr: Any,
    indices: Any,
    weights: Any,
    column_indptr: Any,
    column_rows: Any,
    column_weights: Any,
    row_start: int,
    row_stop: int,
) -> Any:
    num_samples = len(indptr) - 1
    overlap_N = np.zeros(num_samples, np.int64)
    met = np.empty(num_samples, np.int32)
    counts = np.zeros(1 + NUM_BINS, np.int64)
    for i in range(row_start, row_stop):
        num_met = _overlaps_of_row(
            i, indptr, indices, weights, column_indptr, column_rows, column_weights, overlap_N, met
        )
        for m in range(num_met):
            distance = _distance(overlap_N[met[m]])
            overlap_N[met[m]] = 0
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
