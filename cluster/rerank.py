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
from cluster.encoding import ONE, Dialect, Reciprocity, encode, grown, stack
from cluster.neighbours import Longs, fixed_point_scale, nearest_neighbours
from cluster.products import Ints
from cluster.runner import Handle, Runner, Threads
from daal.errors import LabelError

NUM_BINS = 1 << 17  # of the distance histogram
BUCKET_BITS = 11  # 2048 columns of the index are sorted at a time
NUM_SLOTS = 1 << 13  # of rough sums: 32 KB
ROUGH_BITS = 14  # that rough sums don't have; copies of 2^28 samples would overflow them
LINE = 16  # int32 in a cache line
ZERO = 1e-6  # distances up to here count as 0: equal rows may differ by rounding elsewhere


class InvertedIndex(NamedTuple):
    """Who has weight on sample g: entries[starts[g]:starts[g + 1]] are (sample, weight) int32, by
    sample. `sums_N` int32: the weights of each row."""

    starts: Longs
    entries_E2: Ints
    sums_N: Ints


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
    if runner is None:
        with Threads() as runner:
            return jaccard_distance(
                *(features_ND, k1, k2, max_distance),
                dialect=dialect,
                runner=runner,
                num_blocks=num_blocks,
            )
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
    return runner.submit("jaccard: index", inverted_index, encodings, runner.device, on_device=True)


def distances_below(
    runner: Runner,
    encodings: Handle,
    index: Handle,
    max_distance: float,
    blocks: list[tuple[int, int]],
) -> csr_array:
    """Distances below `max_distance`, float32, each pair once: the strict upper triangle."""
    parts = [
        runner.submit(
            *("jaccard: distances", pairs_below, encodings, index, max_distance),
            *(runner.device, *block),
            on_device=True,
        )
        for block in blocks
    ]
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
    parts = [
        runner.submit(
            *("jaccard: histogram", histogram_block, encodings, index, every),
            *(runner.device, *block),
            on_device=True,
        )
        for block in blocks
    ]
    counts = np.sum(runner.collect(parts), axis=0)
    return int(counts[0]), counts[1:]


def symmetric(upper: csr_array) -> csr_array:
    """Both triangles and a diagonal of explicit zeros from a sorted strict upper triangle."""
    indptr, indices, data = _symmetric_kernel(upper.indptr, upper.indices, upper.data)
    return csr_array((data, indices, indptr), shape=upper.shape)


# ---- Stages -----------------------------------------------------------------------------

# As in `cluster.encoding`, what other devices do is imported where it is called.


def inverted_index(encodings: csr_array, device: str) -> InvertedIndex:
    """The encodings by column."""
    if device != "cpu":
        from cluster import on_gpu

        return on_gpu.inverted_index(encodings, device)
    # NumPy asks for huge pages where numba doesn't: claiming the memory takes half as long.
    # Sample and weight side by side: whoever looks at a column waits for memory once.
    entries = np.empty((encodings.nnz, 2), np.int32)
    starts, sums = _index_kernel(
        *(encodings.indptr, encodings.indices, encodings.data),
        *(np.empty(encodings.nnz, np.uint16), entries),
    )
    return InvertedIndex(starts, entries, sums)


def pairs_below(
    encodings: csr_array,
    index: InvertedIndex,
    max_distance: float,
    device: str,
    row_start: int,
    row_stop: int,
) -> csr_array:
    """Distances below `max_distance` of rows row_start..row_stop to all later samples.

    Only samples that are met in a common column are ever touched.
    """
    if device != "cpu":
        from cluster import on_gpu

        return on_gpu.pairs_below(encodings, index, max_distance, row_start, row_stop, device)
    indptr, indices, distances = _pairs_kernel(
        *(encodings.indptr, encodings.indices, encodings.data, *index),
        *(max_distance, row_start, row_stop),
    )
    shape = (row_stop - row_start, encodings.shape[0])
    return csr_array((distances, indices, indptr), shape=shape)


def histogram_block(
    encodings: csr_array,
    index: InvertedIndex,
    every: int,
    device: str,
    row_start: int,
    row_stop: int,
) -> Longs:
    """Counts of the same distances: first the zeros, then `NUM_BINS` equal bins of (0, 1)."""
    if device != "cpu":
        from cluster import on_gpu

        return on_gpu.histogram_block(encodings, index, every, row_start, row_stop, device)
    counts: Longs = _histogram_kernel(
        *(encodings.indptr, encodings.indices, encodings.data, *index),
        *(every, row_start, row_stop),
    )
    return counts


# ---- Kernels ----------------------------------------------------------------------------


@kernel
def _index_kernel(
    indptr: Any, indices: Any, weights: Any, columns: Any, entries: Ints
) -> tuple[Longs, Ints]:
    """Fill `entries`; returns (starts, sums). `columns` is room for a number of each entry."""
    num_samples = len(indptr) - 1
    # First by bucket of columns, then by column: entries are never scattered over more memory
    # than the processor keeps close.
    bucket_starts = np.zeros((num_samples >> BUCKET_BITS) + 2, np.int64)
    for entry in range(len(indices)):
        bucket_starts[np.uint64((indices[entry] >> BUCKET_BITS) + 1)] += 1
    bucket_starts = np.cumsum(bucket_starts)
    place = bucket_starts[:-1].copy()
    sums = np.zeros(num_samples, np.int32)
    for i in range(num_samples):
        for entry in range(indptr[i], indptr[i + 1]):
            bucket = np.uint64(indices[entry] >> BUCKET_BITS)
            to = np.uint64(place[bucket])
            columns[to] = indices[entry] & ((1 << BUCKET_BITS) - 1)  # counted from its first
            entries[to, 0] = i
            entries[to, 1] = weights[entry]
            place[bucket] += 1
            sums[i] += weights[entry]
    starts = np.empty(num_samples + 1, np.int64)
    starts[0] = 0
    for bucket in range(len(bucket_starts) - 1):
        inside = slice(bucket_starts[bucket], bucket_starts[bucket + 1])
        first = bucket << BUCKET_BITS
        last = min(first + (1 << BUCKET_BITS), num_samples)
        counts = np.zeros(1 << BUCKET_BITS, np.int64)
        for column in columns[inside]:
            counts[column] += 1
        starts[first + 1 : last + 1] = starts[first] + np.cumsum(counts[: last - first])
        place = starts[first:last].copy()
        unsorted = entries[inside].copy()
        for entry, column in enumerate(columns[inside]):
            to = np.uint64(place[column])
            entries[to, 0] = unsorted[entry, 0]
            entries[to, 1] = unsorted[entry, 1]
            place[column] += 1
    return starts, sums


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
def distance_of(overlap: int, both_sums: int) -> np.float32:
    return np.float32((both_sums - 2 * overlap) / (both_sums - overlap))


@kernel
def _candidates(
    i: int,
    columns: Any,
    weights: Any,
    starts: Longs,
    entries: Ints,
    threshold: int,
    spans: Any,
    sums: Ints,
    met: Any,
) -> Any:
    """Note in `met` all samples j > i whose overlap with row i may be above `threshold`, some
    repeatedly; returns (met, how many are noted).

    Samples share the rough `sums`, which a processor's nearest cache holds, however many samples
    there are; few who have too little overlap are noted for another's.
    """
    num_columns = num_entries = 0
    for entry in range(len(columns)):
        stop = starts[columns[entry] + 1]
        spans[num_columns, 0] = starts[columns[entry]]
        spans[num_columns, 1] = stop
        spans[num_columns, 2] = weights[entry] >> ROUGH_BITS
        num_entries += stop - spans[num_columns, 0]
        num_columns += entries[2 * stop - 2] > i  # else nobody in it is later
    while len(met) <= num_entries:
        met = grown(met, 0)
    # Read from all cache lines now: one would be waited for after the other below.
    touched = 0
    for c in range(num_columns):
        for place in range(2 * spans[c, 1] - 2, 2 * spans[c, 0], -LINE):
            touched += entries[np.uint64(place)]
    met[0] = touched  # or the compiler leaves it out
    # Each entry's part of the overlap was rounded down.
    rough = np.int32((threshold >> ROUGH_BITS) - num_columns)
    sums[:] = 0
    num_met = np.uint64(0)  # unsigned, as what counts from the end would take as long as the rest
    for c in range(num_columns):
        weight = np.int32(spans[c, 2])
        place = np.uint64(2 * spans[c, 1])
        for _ in range(spans[c, 1] - spans[c, 0]):
            place -= np.uint64(2)
            j = entries[place]
            if j <= i:
                break
            slot = np.uint64(j & (NUM_SLOTS - 1))
            other = np.int32(entries[place + np.uint64(1)] >> ROUGH_BITS)
            total = np.int32(sums[slot] + min(weight, other))
            sums[slot] = total
            met[num_met] = j  # stays if it may be near enough; without a branch, guessed wrong
            num_met += np.uint64(total > rough)
    return met, np.int64(num_met)


@kernel
def _pairs_kernel(
    indptr: Any,
    indices: Any,
    weights: Any,
    starts: Longs,
    entries: Ints,
    sums: Ints,
    max_distance: float,
    row_start: int,
    row_stop: int,
) -> Any:
    num_samples = len(indptr) - 1
    entries = entries.reshape(-1)
    spans = np.empty((np.diff(indptr).max(), 3), np.int64)
    rough_sums = np.empty(NUM_SLOTS, np.int32)
    met = np.empty(1024, np.int64)
    seen_N = np.full(num_samples, -1, np.int32)  # by which row last
    weight_N = np.zeros(num_samples, np.int32)  # of the row at work
    out_indptr = np.zeros(row_stop - row_start + 1, np.int64)
    out_indices = np.empty(1024, np.int32)
    out_distances = np.empty(1024, np.float32)
    # The least overlap that a distance asked for may have; a little less, as sums and distances
    # are rounded.
    least = max(0, int(2 * ONE * (1 - max_distance) / (2 - max_distance)) - 4096)
    end = 0
    for i in range(row_start, row_stop):
        row = slice(indptr[i], indptr[i + 1])
        met, num_met = _candidates(
            *(i, indices[row], weights[row], starts, entries, least, spans, rough_sums, met)
        )
        num_candidates = touched = 0
        for m in range(num_met):
            j = met[m]
            if seen_N[j] != i:
                seen_N[j] = i
                met[num_candidates] = j
                num_candidates += 1
                for entry in range(indptr[j], indptr[j + 1], LINE):
                    touched += indices[entry] + weights[entry]
        met[num_candidates] = touched  # as above
        for entry in range(indptr[i], indptr[i + 1]):
            weight_N[indices[entry]] = weights[entry]
        num_kept = 0
        for m in range(num_candidates):
            j = met[m]
            overlap = 0
            for entry in range(np.uint64(indptr[j]), np.uint64(indptr[j + 1])):
                overlap += min(weights[entry], weight_N[np.uint64(indices[entry])])
            if (
                overlap > least
                and distance_of(overlap, np.int64(sums[i]) + sums[j]) < max_distance
            ):
                met[num_kept] = j << 32 | overlap
                num_kept += 1
        weight_N[indices[row]] = 0
        met[:num_kept].sort()
        while end + num_kept > len(out_indices):
            out_indices, out_distances = grown(out_indices, end), grown(out_distances, end)
        for m in range(num_kept):
            j, overlap = met[m] >> 32, met[m] & 0xFFFFFFFF
            out_indices[end] = j
            out_distances[end] = distance_of(overlap, np.int64(sums[i]) + sums[j])
            end += 1
        out_indptr[i - row_start + 1] = end
    return out_indptr, out_indices[:end], out_distances[:end]


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
