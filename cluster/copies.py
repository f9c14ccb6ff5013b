"""Samples that are exact copies of others: found once, searched for once, put back."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cluster.blocks import kernel
from cluster.products import Floats, Ints

Longs: TypeAlias = npt.NDArray[np.int64]

FEW_COLUMNS = 128
MINUS_ZERO = np.uint32(1 << 31)  # its bits
GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)  # in units of 2^-64: scatters bits


def distinct_rows(features_ND: Floats) -> Longs:
    """For every row the lowest index of a row that is equal to it (as values: -0 is 0)."""
    bits_ND = features_ND.view(np.uint32)
    # Nearly all rows differ in the first columns already.
    rows, _ = _alike(bits_ND[:, :FEW_COLUMNS], np.arange(len(bits_ND)))
    rows, hashes = _alike(bits_ND, np.sort(rows))
    first_copy_N = np.arange(len(bits_ND))
    _find_copies(features_ND, hashes, rows, first_copy_N)
    return first_copy_N


def _alike(bits_ND: npt.NDArray[np.uint32], rows: Longs) -> tuple[Longs, Longs]:
    """Those `rows` whose hash another one has, too, and their hashes, ordered by hash and row."""
    hashes = _hash_rows(bits_ND, rows)
    order = np.argsort(hashes, kind="stable")
    rows, hashes = rows[order], hashes[order]
    is_like_next = hashes[1:] == hashes[:-1]
    is_alike = np.zeros(len(rows), np.bool_)
    is_alike[:-1] |= is_like_next
    is_alike[1:] |= is_like_next
    return rows[is_alike], hashes[is_alike]


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


@kernel
def _hash_rows(bits_ND: npt.NDArray[np.uint32], rows: Longs) -> Longs:
    hashes = np.empty(len(rows), np.int64)
    for r, i in enumerate(rows):
        total = np.uint64(0)
        for d in range(bits_ND.shape[1]):
            # A sum, with a multiplier for each place, compiles to vector instructions.
            value = np.uint64(bits_ND[i, d] if bits_ND[i, d] != MINUS_ZERO else np.uint32(0))
            total += (value + np.uint64(d)) * (value ^ (GOLDEN_RATIO * np.uint64(2 * d + 1)))
        hashes[r] = np.int64(total)
    return hashes


@kernel
def _find_copies(features_ND: Floats, hashes: Longs, rows: Longs, first_copy_N: Longs) -> None:
    start = 0
    for stop in range(1, len(rows) + 1):
        if stop < len(rows) and hashes[stop] == hashes[start]:
            continue
        for a in range(start + 1, stop):
            i = rows[a]
            for b in range(start, a):  # ascending
                j = rows[b]
                if first_copy_N[j] == j and (features_ND[i] == features_ND[j]).all():
                    first_copy_N[i] = j
                    break
        start = stop
