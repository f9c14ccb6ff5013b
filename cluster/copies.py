"""Samples that are exact copies of others."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cluster.arrays import Floats, Longs
from cluster.compiled import kernel

Hashes: TypeAlias = npt.NDArray[np.uint64]


def distinct_rows(features_ND: Floats) -> Longs:
    """For every row the lowest index of a row that is equal to it (as values: -0 is 0).

    Rows of equal hash are compared. Should unequal rows share a hash, copies of the later one count
    as distinct.
    """
    rng = np.random.default_rng(0)
    multipliers_D: Hashes = rng.integers(1 << 64, size=features_ND.shape[1:], dtype=np.uint64)
    hashes_N = _hashes(features_ND, multipliers_D)
    _, first, group = np.unique(hashes_N, return_index=True, return_inverse=True)
    first_copy_N: Longs = first[group]
    for row in np.flatnonzero(first_copy_N != np.arange(len(features_ND))):
        if not np.array_equal(features_ND[row], features_ND[first_copy_N[row]]):
            first_copy_N[row] = row
    return first_copy_N


@kernel
def _hashes(features_ND: Floats, multipliers_D: Hashes) -> Hashes:
    hashes = np.empty(len(features_ND), np.uint64)
    for n in range(len(features_ND)):
        bits_D = features_ND[n].view(np.uint32)
        total = np.uint64(0)
        for d in range(len(bits_D)):
            is_minus_zero = bits_D[d] == np.uint32(1 << 31)
            total += np.uint64(0 if is_minus_zero else bits_D[d]) * multipliers_D[d]
        hashes[n] = total
    return hashes
