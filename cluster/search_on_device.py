"""Neighbours of a row block on a GPU: products on matrix units, top-k, exact distances.

A block is searched among all its columns, tile by tile; nothing but its features goes up, once,
and nothing but its neighbours comes back. The bits are those of the CPU's kernels: exact sums are
of integers, so no order can matter; floats meet only single multiplications and additions in
float64. The same code on CPU tensors shows it without a GPU.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cluster.arrays import Floats
from cluster.blocks import row_blocks
from cluster.device import kept_on_device
from cluster.refine import (
    FIXED_POINT,
    NUM_FARTHEST,
    SLACK,
    Neighbours,
    Precision,
    Search,
    rounded,
    rounding_bound,
    search_again,
)

ROWS_ON_DEVICE = 8192  # of a block
COLUMNS_ON_DEVICE = 8192  # of a tile: 256 MB of products
MAX_BYTES = 1 << 29  # of temporaries while pairs are measured exactly
NOBODY = (1 << 63) - 1  # sorts behind everybody
LOW_HALF = (1 << 32) - 1
_precision_lock = threading.Lock()  # torch has one precision for the whole process


def search_rows(
    features_ND: Floats, search: Search, device: str, row_start: int, row_stop: int
) -> Neighbours:
    """Exact neighbours of rows row_start..row_stop, which are of one group, and after them the
    other candidates, as they are measured already."""
    features = kept_on_device(features_ND, device)
    near, far = _candidates(features, search, row_start, row_stop)
    found, certified_R = _refined(features, search, row_start, near, far)
    doubtful = np.flatnonzero(~certified_R & search.certify)

    def measure(rows: npt.NDArray[np.intp]) -> Floats:
        some = features[torch.from_numpy(rows).to(features.device)]
        sq_RN: Floats = tile_distances(some, features, "fp32").cpu().numpy()
        return sq_RN

    search_again(features_ND, search, row_start, doubtful, found, measure)
    return found


# ---- Candidates -------------------------------------------------------------------------


class Best(NamedTuple):
    """The nearest of each row, or the farthest: `sq_RC` float32 and `index_RC` int32, in order;
    (infinite, -1) where there are no more."""

    sq_RC: torch.Tensor
    index_RC: torch.Tensor

    def with_tile(self, sq_RI: torch.Tensor, first_column: int, farthest: bool) -> "Best":
        """As many, of these and of a tile's columns."""
        size = min(self.sq_RC.shape[1], sq_RI.shape[1])
        tile = sq_RI.topk(size, largest=farthest)
        columns_RC = torch.where(tile.values.isinf(), -1, tile.indices + first_column)
        sq_RC = torch.cat([self.sq_RC, tile.values], 1)
        index_RC = torch.cat([self.index_RC, columns_RC.int()], 1)
        best = sq_RC.topk(self.sq_RC.shape[1], largest=farthest)
        return Best(best.values, index_RC.gather(1, best.indices))


def _candidates(
    features: torch.Tensor, search: Search, row_start: int, row_stop: int
) -> tuple[Best, Best]:
    """The nearest and the farthest of each row by rounded products."""
    num_samples = len(features)
    # A list of N has a place too many, which shows that no sample was turned away.
    num_near = min(search.k + SLACK[search.precision], num_samples)
    near, far = (
        Best(
            features.new_full((row_stop - row_start, size), worst),
            features.new_full((row_stop - row_start, size), -1, dtype=torch.int32),
        )
        for size, worst in ((num_near, torch.inf), (NUM_FARTHEST, -torch.inf))
    )
    rows = features[row_start:row_stop]
    for first, last in search.columns(row_start, num_samples):
        for start, stop in row_blocks(last - first, -(-(last - first) // COLUMNS_ON_DEVICE)):
            start, stop = first + start, first + stop
            sq_RI = tile_distances(rows, features[start:stop], search.precision)
            # No sample is its own neighbour, and none is far from itself.
            sq_RI.diagonal(row_start - start).fill_(torch.inf)
            near = near.with_tile(sq_RI, start, farthest=False)
            sq_RI.diagonal(row_start - start).fill_(-torch.inf)
            far = far.with_tile(sq_RI, start, farthest=True)
    return near, far


def tile_distances(
    tile_rows: torch.Tensor, tile_columns: torch.Tensor, precision: Precision
) -> torch.Tensor:
    """Squared distances of every row to every column by rounded products, float32."""
    sq_norms_I, sq_norms_J = tile_rows.square().sum(1), tile_columns.square().sum(1)
    if not tile_rows.is_cuda:  # CPUs have no matrix units: round the operands alike, for tests
        tile_rows, tile_columns = (
            torch.from_numpy(rounded(tile.numpy(), precision)) for tile in (tile_rows, tile_columns)
        )
    if precision == "bf16" and tile_rows.is_cuda:
        products_IJ = torch.mm(
            tile_rows.bfloat16(), tile_columns.bfloat16().T, out_dtype=torch.float32
        )
    else:
        with matmul_precision(precision):
            products_IJ = tile_rows @ tile_columns.T
    return products_IJ.mul_(-2).add_(sq_norms_I[:, None]).add_(sq_norms_J)


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """fp32 products as such, or on TF32 units, whatever the process allows for training.

    A product is enqueued under the lock: another thread can't change how it is computed.
    """
    with _precision_lock:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


# ---- Exact distances --------------------------------------------------------------------


def _refined(
    features: torch.Tensor, search: Search, row_start: int, near: Best, far: Best
) -> tuple[Neighbours, npt.NDArray[np.bool_]]:
    """Exact neighbours from the candidates, and whether each row's are certain.

    `cluster.refine` stops at the first candidate that settles a row. Here all are measured: the
    last one settles what any before it would have.
    """
    num_rows, num_near = near.index_RC.shape
    itself_first, scale = search.groups.same, search.scale
    num_others = search.k - itself_first
    rounding = rounding_bound(search.precision, features.shape[1])
    row_R = torch.arange(row_start, row_start + num_rows, device=features.device)
    candidate_RX = torch.cat([near.index_RC, far.index_RC], 1).long()
    i_P = row_R.repeat_interleave(candidate_RX.shape[1], output_size=candidate_RX.numel())
    j_P = candidate_RX.clamp(min=0).flatten()
    sq_RX = squared_distances(features, i_P, j_P, scale).view_as(candidate_RX)
    is_there_RX = candidate_RX >= 0

    # Floats from 0 on are ordered as their bits are: (distance, index) is one integer.
    key_RX = sq_RX.view(torch.int32).long() << 32 | candidate_RX
    key_RC = torch.where(is_there_RX, key_RX, NOBODY)[:, :num_near]
    key_RC = key_RC.sort(1).values
    is_found_RC = key_RC != NOBODY
    index_RC = torch.where(is_found_RC, key_RC & LOW_HALF, -1).int()
    nearest_sq_RC = torch.where(is_found_RC, key_RC >> 32, 0).int().view(torch.float32)
    farthest_sq_R = torch.where(is_there_RX, sq_RX, 0)[:, num_near:].amax(1)

    norm_R = torch.linalg.vector_norm(features[row_R], dim=1, dtype=torch.float64)
    off_R = _rounding(norm_R, farthest_sq_R, scale, rounding)
    certified = ~is_there_RX[:, -1] | (farthest_sq_R > far.sq_RC[:, -1] + off_R)
    if num_others > 0:
        kth_sq_R = nearest_sq_RC[:, num_others - 1]
        off_R = _rounding(norm_R, kth_sq_R, scale, rounding)
        certified &= ~is_there_RX[:, num_near - 1] | (kth_sq_R < near.sq_RC[:, -1] - off_R)
    if itself_first:
        index_RC = torch.cat([row_R[:, None].int(), index_RC], 1)
        nearest_sq_RC = torch.cat([nearest_sq_RC.new_zeros(num_rows, 1), nearest_sq_RC], 1)
    found = (index_RC, nearest_sq_RC, farthest_sq_R, certified)
    *lists, certified_R = (tensor.cpu().numpy() for tensor in found)
    return Neighbours(*lists), certified_R


def _rounding(
    norm_R: torch.Tensor, sq_R: torch.Tensor, scale: float, rounding: float
) -> torch.Tensor:
    """`cluster.refine._rounding`."""
    other_norm_R = (norm_R + sq_R.double().sqrt()).clamp(max=1.1 * FIXED_POINT / scale)
    off_R: torch.Tensor = rounding * (norm_R.square() + other_norm_R.square())
    return off_R


def squared_distances(
    features_ND: torch.Tensor, i_P: torch.Tensor, j_P: torch.Tensor, scale: float
) -> torch.Tensor:
    """`cluster.refine.squared_distance` of pairs of rows, (P,) float32."""
    pairs_at_once = max(1, MAX_BYTES // (24 * features_ND.shape[1]))
    sq_P = []
    for i, j in zip(*(torch.split(x_P, pairs_at_once) for x_P in (i_P, j_P)), strict=True):
        difference_PD = features_ND[i].double()
        difference_PD -= features_ND[j]
        difference_PD *= scale
        difference_PD *= difference_PD
        sq_P.append((difference_PD.long().sum(1).double() * scale**-2).float())
    return torch.cat(sq_P)
