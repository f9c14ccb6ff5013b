"""Which rows of the encodings are near each other: the pairs that their inverted index leads to.

Two rows are compared only if a rough sum over the columns they share says that they may be near
enough; that sum is never too small, so none is missed.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from cluster.arrays import ONE, Ints, Longs
from cluster.compiled import grown, kernel

NUM_SLOTS = 1 << 13  # of rough sums: 32 KB
ROUGH_BITS = 14  # that rough sums don't have; copies of 2^28 samples would overflow them
LINE = 16  # int32 in a cache line


class InvertedIndex(NamedTuple):
    """The encodings by column: entries[starts[g]:starts[g + 1]] are (sample, weight) int32 of the
    samples with weight on sample g, ascending. `sums_N` int32: the weights of each row."""

    starts: Longs
    entries_E2: Ints
    sums_N: Ints


def inverted_index(encodings: csr_array) -> InvertedIndex:
    """The index of encodings (N, N)."""
    by_column = encodings.tocsc()
    # Sample and weight lie side by side, so that a column is read from memory once.
    entries_E2 = np.stack([by_column.indices, by_column.data], axis=1)
    return InvertedIndex(by_column.indptr, entries_E2, encodings.sum(axis=1, dtype=np.int32))


@kernel
def distance_of(overlap: int, both_sums: int) -> np.float32:
    return np.float32((both_sums - 2 * overlap) / (both_sums - overlap))


@kernel
def _candidates(
    i: int,
    columns: Any,
    weights: Any,
    starts: Longs,
    entries: Any,
    threshold: int,
    spans: Any,
    sums: Ints,
    met: Any,
) -> Any:
    """Note in `met` all samples j > i whose overlap with row i may be above `threshold`, some
    repeatedly; returns (met, how many are noted).

    Samples share the rough `sums`, which fit into a processor's nearest cache however many samples
    there are. A sample that shares another's sum may be noted without enough overlap of its own.
    """
    num_columns = num_entries = 0
    for entry in range(len(columns)):
        stop = starts[columns[entry] + 1]
        spans[num_columns, 0] = starts[columns[entry]]
        spans[num_columns, 1] = stop
        spans[num_columns, 2] = weights[entry] >> ROUGH_BITS
        num_entries += stop - spans[num_columns, 0]
        num_columns += entries[2 * stop - 2] > i  # else no sample in it is later
    while len(met) <= num_entries:
        met = grown(met, 0)
    # Read from the cache lines now: one would be waited for after the other below. How many of a
    # column's samples are later is guessed, as if they were spread evenly.
    touched = 0
    later_share = 1 - i / (len(starts) - 1)
    for c in range(num_columns):
        num_later = 4 + int(later_share * (spans[c, 1] - spans[c, 0]))
        first = max(spans[c, 0], spans[c, 1] - num_later)
        for line in range(2 * spans[c, 1] - 2, 2 * first, -LINE):
            touched += entries[np.uint64(line)]
    met[0] = touched  # or the compiler leaves it out
    # Each entry's part of the overlap was rounded down.
    rough = np.int32((threshold >> ROUGH_BITS) - num_columns)
    sums[:] = 0
    num_met = np.uint64(0)  # unsigned: an index that may count from the end takes twice as long
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
def pairs_kernel(
    indptr: Any,
    indices: Any,
    weights: Any,
    index: InvertedIndex,
    max_distance: float,
    row_start: int,
    row_stop: int,
    every: int,
) -> Any:
    """Pairs of every n-th row with all later ones: (indptr, indices, distances)."""
    starts, entries_E2, sums = index
    entries = entries_E2.reshape(-1)
    num_samples = len(indptr) - 1
    spans = np.empty((np.diff(indptr).max(), 3), np.int64)
    rough_sums = np.empty(NUM_SLOTS, np.int32)
    met = np.empty(1024, np.int64)
    seen_N = np.full(num_samples, -1, np.int32)  # by which row last
    weight_N = np.zeros(num_samples, np.int32)  # of the row at work
    out_indptr = np.zeros(len(range(row_start, row_stop, every)) + 1, np.int64)
    out_indices = np.empty(1024, np.int32)
    out_distances = np.empty(1024, np.float32)
    # The least overlap that a distance asked for may have; a little less, as sums and distances
    # are rounded.
    least = max(0, int(2 * ONE * (1 - max_distance) / (2 - max_distance)) - 4096)
    end = 0
    for r, i in enumerate(range(row_start, row_stop, every)):
        row = slice(indptr[i], indptr[i + 1])
        met, num_met = _candidates(
            i, indices[row], weights[row], starts, entries, least, spans, rough_sums, met
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
            if overlap > least and distance_of(overlap, np.int64(sums[i]) + sums[j]) < max_distance:
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
        out_indptr[r + 1] = end
    return out_indptr, out_indices[:end], out_distances[:end]
