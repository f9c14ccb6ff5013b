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
    sq_bits_UK: Ints,
    copy_of_N: Ints,
    by_distinct: Ints,
    edges: npt.NDArray[np.intp],
    k: int,
    row_start: int,
    row_stop: int,
) -> tuple[Ints, Ints]:
    """The k nearest of each row, from those of the distinct samples: itself, then by (distance,
    index). Distances, from 0 on, are ordered as their bits are."""
    indices_RK = np.full((row_stop - row_start, k), -1, np.int32)
    sq_bits_RK = np.zeros((row_stop - row_start, k), np.int32)
    keys = np.empty(indices_UK.shape[1] * (k + 1), np.int64)
    for i in range(row_start, row_stop):
        r, u, num_keys = i - row_start, copy_of_N[i], 0
        for place in range(indices_UK.shape[1]):
            v = indices_UK[u, place]
            if v < 0:
                break
            for entry in range(edges[v], min(edges[v + 1], edges[v] + k + 1)):
                if by_distinct[entry] != i:
                    keys[num_keys] = np.int64(sq_bits_UK[u, place]) << 32 | by_distinct[entry]
                    num_keys += 1
        keys[:num_keys].sort()
        indices_RK[r, 0] = i
        for p in range(min(num_keys, k - 1)):
            indices_RK[r, p + 1] = keys[p] & 0xFFFFFFFF
            sq_bits_RK[r, p + 1] = keys[p] >> 32
    return indices_RK, sq_bits_RK
