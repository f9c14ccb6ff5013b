"""Samples that are exact copies of others."""

import numpy as np
import numpy.typing as npt

from cluster.arrays import Floats, Longs
from cluster.compiled import kernel


def distinct_rows(features_ND: Floats) -> Longs:
    """For every row the lowest index of a row that is equal to it (as values: -0 is 0).

    Rows of equal hash are compared. Should unequal rows share a hash, copies of the later one count
    as distinct.
    """
    _, first, group = np.unique(_hashes(features_ND), return_index=True, return_inverse=True)
    first_copy_N: Longs = first[group]
    for row in np.flatnonzero(first_copy_N != np.arange(len(features_ND))):
        if not np.array_equal(features_ND[row], features_ND[first_copy_N[row]]):
            first_copy_N[row] = row
    return first_copy_N


@kernel
def _hashes(features_ND: Floats) -> npt.NDArray[np.uint64]:
    """FNV-1a of each row, by words of 32 bits."""
    hashes = np.full(len(features_ND), 0xCBF29CE484222325, np.uint64)
    for n in range(len(features_ND)):
        bits_D = features_ND[n].view(np.uint32)
        for d in range(len(bits_D)):
            bits = np.uint64(bits_D[d] if bits_D[d] != 1 << 31 else 0)  # -0 is 0
            hashes[n] = (hashes[n] ^ bits) * np.uint64(0x100000001B3)
    return hashes
