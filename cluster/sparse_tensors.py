"""Sparse rows as tensors: pieces that fit into memory, ranges of entries, sums by key."""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_array

from cluster.blocks import row_blocks
from cluster.products import to_device

MAX_BYTES = 1 << 28  # of temporaries many times the size of the result
# Entries expanded and sorted at once, some 90 bytes each. More wouldn't fill a GPU any better,
# and several tasks may share one.
ENTRIES = 1 << 20
ENTRIES_ON_GPU = 1 << 23


def row_pieces(num_rows: int, bytes_per_row: int) -> list[tuple[int, int]]:
    """(start, stop) of rows with `MAX_BYTES` of temporaries."""
    return row_blocks(num_rows, -(-num_rows * bytes_per_row // MAX_BYTES))


def pieces(num_entries_R: torch.Tensor, device: str) -> Iterator[tuple[int, int]]:
    """(start, stop) of rows with as many entries as are expanded at once, or of one row."""
    most = ENTRIES if device == "cpu" else ENTRIES_ON_GPU
    ends = np.cumsum(num_entries_R.cpu().numpy())
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start > 0 else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield start, stop
        start = stop


def ranges(starts_P: torch.Tensor, counts_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers from each start on, as many as its count: (which range, number), in order."""
    range_T = torch.repeat_interleave(counts_P)
    shift_P = starts_P - (counts_P.cumsum(0) - counts_P)
    return range_T, torch.arange(len(range_T), device=range_T.device) + shift_P[range_T]


def sums_by_key(key_T: torch.Tensor, value_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every key once, in order, and the sum of its integers, int64."""
    key_T, order_T = key_T.sort()
    sum_T = value_T[order_T].cumsum(0, dtype=torch.int64)
    is_last_T = torch.ones_like(key_T, dtype=torch.bool)
    is_last_T[:-1] = key_T[1:] != key_T[:-1]
    return key_T[is_last_T], sum_T[is_last_T].diff(prepend=sum_T.new_zeros(1))


def sums(row_M: torch.Tensor, value_M: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Sums of each row's integers, (num_rows,) of their type."""
    return value_M.new_zeros(num_rows).index_add_(0, row_M, value_M)


def arrays_of(sparse: csr_array, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """indptr and indices int64, data."""
    indptr, indices, data = (
        to_device(array, device) for array in (sparse.indptr, sparse.indices, sparse.data)
    )
    return indptr.long(), indices.long(), data


def csr(
    row_M: torch.Tensor, column_M: torch.Tensor, value_M: torch.Tensor, shape: tuple[int, int]
) -> csr_array:
    """float32 or integer (then int32) values given row by row."""
    counts_R = torch.bincount(row_M, minlength=shape[0]).cpu().numpy()
    indptr = np.concatenate([[0], np.cumsum(counts_R)])
    value_M = value_M if value_M.is_floating_point() else value_M.int()
    return csr_array((value_M.cpu().numpy(), column_M.int().cpu().numpy(), indptr), shape=shape)
