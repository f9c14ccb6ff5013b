"""Samples that are exact copies of others: found once, searched for once, put back."""

import numpy as np
import numpy.typing as npt

from cluster.arrays import Floats, Ints, Longs
from cluster.compiled import kernel

FEW_COLUMNS = 128
ROWS_AT_ONCE = 1024  # a few MB
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # the golden ratio in units of 2^-64: scatters bits


def distinct_rows(features_ND: Floats) -> Longs:
    """For every row the lowest index of a row that is equal to it (as values: -0 is 0)."""
    first_copy_N = np.arange(len(features_ND))
    rows, hashes = first_copy_N, np.empty(0, np.uint64)
    # Nearly all rows differ in the first columns already.
    for num_columns in (FEW_COLUMNS, features_ND.shape[1]):
        hashes = _hashes(features_ND[:, :num_columns], rows)
        _, group, size = np.unique(hashes, return_inverse=True, return_counts=True)
        rows, hashes = rows[size[group] > 1], hashes[size[group] > 1]
    while len(rows):
        _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
        like = rows[first][group]  # the lowest row of the same hash
        is_copy = _equal(features_ND, rows, like)
        first_copy_N[rows[is_copy]] = like[is_copy]
        rows, hashes = rows[~is_copy], hashes[~is_copy]
    return first_copy_N


def _hashes(features_ND: Floats, rows: Longs) -> npt.NDArray[np.uint64]:
    multipliers = MULTIPLIER * np.arange(1, 2 * features_ND.shape[1], 2, dtype=np.uint64)
    hashes = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        bits = (features_ND[rows[some]] + np.float32(0)).view(np.uint32)  # -0 + 0 is 0
        hashes[some] = bits.astype(np.uint64) @ multipliers
    return hashes


def _equal(features_ND: Floats, rows: Longs, others: Longs) -> npt.NDArray[np.bool_]:
    is_equal = np.empty(len(rows), np.bool_)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        is_equal[some] = (features_ND[rows[some]] == features_ND[others[some]]).all(axis=1)
    return is_equal


@kernel
def copy_rows(
    indices_UK: Ints,
    sq_UK: Floats,
    copy_of_N: Ints,
    by_distinct: Ints,
    edges: npt.NDArray[np.intp],
    k: int,
    row_start: int,
    row_stop: int,
) -> tuple[Ints, Floats]:
    indices_RK = np.full((row_stop - row_start, k), -1, np.int32)
    sq_RK = np.zeros((row_stop - row_start, k), np.float32)
    pool = np.empty(len(copy_of_N), np.int32)
    for i in range(row_start, row_stop):
        r, u = i - row_start, copy_of_N[i]
        indices_RK[r, 0] = i
        held = 1
        place = 0
        while held < k and place < indices_UK.shape[1] and indices_UK[u, place] >= 0:
            # Distinct samples at equal distance are one run: their copies go by index together.
            run_stop = place + 1
            while run_stop < indices_UK.shape[1] and sq_UK[u, run_stop] == sq_UK[u, place]:
                run_stop += 1
            num_pooled = 0
            for p in range(place, run_stop):
                v = indices_UK[u, p]
                if v >= 0:
                    for entry in range(edges[v], edges[v + 1]):
                        # Of a run of one, k copies are enough.
                        if num_pooled == k and run_stop == place + 1:
                            break
                        if by_distinct[entry] != i:
                            pool[num_pooled] = by_distinct[entry]
                            num_pooled += 1
            if run_stop > place + 1:
                pool[:num_pooled].sort()
            for p in range(min(num_pooled, k - held)):
                indices_RK[r, held] = pool[p]
                sq_RK[r, held] = sq_UK[u, place]
                held += 1
            place = run_stop
    return indices_RK, sq_RK
