"""Jaccard distances of encodings: 1 - m / (|V[i]| + |V[j]| - m), m = sum_g min(V[i, g], V[j, g]).

(Rows of V sum to 1, so that is 1 - m / (2 - m); with the rounded sums equal rows are at distance
exactly 0.)

Samples without a common neighbour are at distance exactly 1, which is most pairs: those are never
stored, and no more of the others than a clusterer asks for.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, vstack

from cluster.arrays import Ints, Longs
from cluster.compiled import kernel
from cluster.near_pairs import InvertedIndex, inverted_index, pairs_kernel
from cluster.run import Handle, Runner, run_one
from cluster.source_term import SourceTerm

NUM_BINS = 1 << 17  # of the distance histogram
ZERO = 1e-6  # distances up to here count as 0: equal rows may differ by rounding elsewhere
ROWS_AT_ONCE = 1024  # whose distances are held while they are counted


@dataclass(frozen=True)
class Pairs:
    """Distances between all samples, computed as a clusterer asks for them.

    Row r of `encodings` (N, N) and of all distances is sample `samples_N[r]`. `index` is the
    encodings' `InvertedIndex`; `term` is added to the distances that a clusterer sees.
    """

    runner: Runner
    encodings: Handle
    index: Handle
    samples_N: npt.NDArray[np.integer]
    blocks: list[tuple[int, int]]
    term: SourceTerm | None = None

    @classmethod
    def of(
        cls,
        runner: Runner,
        encodings: Handle,
        samples_N: npt.NDArray[np.integer],
        blocks: list[tuple[int, int]],
        term: SourceTerm | None = None,
    ) -> "Pairs":
        """Pairs of encodings whose index is made first."""
        index = run_one(runner, "jaccard: index", inverted_index, encodings)
        return cls(runner, encodings, index, samples_N, blocks, term)

    @property
    def num_samples(self) -> int:
        return len(self.samples_N)

    def jaccard_below(self, max_distance: float) -> csr_array:
        """Jaccard distances below `max_distance`, float32, each pair once: the strict upper
        triangle."""
        parts = self.runner.run(
            "jaccard: distances", pairs_below, self.blocks, self.encodings, self.index, max_distance
        )
        return vstack(self.runner.values(parts), format="csr")

    def jaccard_histogram(self, every: int = 1) -> tuple[int, Longs]:
        """(number of pairs at distance 0, number in each of `NUM_BINS` equal bins of (0, 1)).

        Each pair counts once. With `every` = n, only the pairs of every n-th row with later ones.
        """
        parts = self.runner.run(
            "jaccard: histogram", histogram_block, self.blocks, self.encodings, self.index, every
        )
        counts = np.sum(self.runner.values(parts), axis=0)
        return int(counts[0]), counts[1:]

    def with_term(self, upper: csr_array) -> csr_array:
        """Jaccard distances as a clusterer sees them."""
        return upper if self.term is None else self.term.added_to(upper)


def symmetric(upper: csr_array) -> csr_array:
    """Both triangles and a diagonal of explicit zeros from a sorted strict upper triangle."""
    indptr, indices, data = _symmetric_kernel(upper.indptr, upper.indices, upper.data)
    return csr_array((data, indices, indptr), shape=upper.shape)


def row_of_entry(matrix: csr_array) -> Ints:
    """The row of each stored entry, in order."""
    return np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))


# ---- Stages -----------------------------------------------------------------------------


def pairs_below(
    encodings: csr_array,
    index: InvertedIndex,
    max_distance: float,
    row_start: int,
    row_stop: int,
    every: int = 1,
) -> csr_array:
    """Distances below `max_distance` of every n-th row in row_start..row_stop to all later samples.

    Only samples that are met in a common column are ever touched.
    """
    v = encodings
    indptr, indices, distances = pairs_kernel(
        v.indptr, v.indices, v.data, index, max_distance, row_start, row_stop, every
    )
    shape = (len(indptr) - 1, encodings.shape[0])
    return csr_array((distances, indices, indptr), shape=shape)


def histogram_block(
    encodings: csr_array, index: InvertedIndex, every: int, row_start: int, row_stop: int
) -> Longs:
    """Counts of the same distances: first the zeros, then `NUM_BINS` equal bins of (0, 1)."""
    counts = np.zeros(1 + NUM_BINS, np.int64)
    first = row_start + -row_start % every
    for start in range(first, row_stop, every * ROWS_AT_ONCE):
        stop = min(row_stop, start + every * ROWS_AT_ONCE)
        distances = pairs_below(encodings, index, 1.0, start, stop, every).data
        far = distances[distances > ZERO]
        counts[0] += len(distances) - len(far)
        bins = (far * np.float64(NUM_BINS)).astype(np.int64)
        counts[1:] += np.bincount(bins, minlength=NUM_BINS)
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
