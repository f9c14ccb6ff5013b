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
from cluster.device import kept_on_device
from cluster.refine import FIXED_POINT, NUM_FARTHEST, Neighbours, Search, search_again
from cluster.run import Runner, can_import, row_blocks
from daal.errors import ConfigError

ROWS_ON_DEVICE = 8192  # of a block
COLUMNS_ON_DEVICE = 8192  # of a tile: 256 MB of products
MAX_BYTES = 1 << 29  # of temporaries while pairs are measured exactly
NO_SAMPLE = (1 << 63) - 1  # sorted last
LOW_HALF = (1 << 32) - 1

# How far cuVS may round an operand of a product, relatively. It doesn't say: by a whole unit of the
# last place of TF32, as matrix units may cut off what doesn't fit.
ROUNDING_OF_CUVS = 1.01 * 2**-10
SLACK_OF_CUVS = 16
_precision_lock = threading.Lock()  # torch has one precision for the whole process


def search_rows(
    features_ND: Floats, search: Search, device: str, row_start: int, row_stop: int
) -> Neighbours:
    """Exact neighbours of rows row_start..row_stop, which are of one group, and after them the
    other candidates, as they are measured already."""
    features = kept_on_device(features_ND, device)
    choose = _candidates_of_cuvs if search.by_cuvs else _candidates
    near, far = choose(features, search, row_start, row_stop)
    found, certified_R = _refined(features, search, row_start, near, far)
    doubtful = np.flatnonzero(~certified_R & search.certify)

    def measure(rows: npt.NDArray[np.intp]) -> Floats:
        some = features[torch.from_numpy(rows).to(features.device)]
        sq_RN: Floats = tile_distances(some, features).cpu().numpy()
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
        return self.with_others(tile.values, tile.indices + first_column, farthest)

    def with_others(self, sq_RX: torch.Tensor, index_RX: torch.Tensor, farthest: bool) -> "Best":
        """As many, of these and of others."""
        index_RX = torch.where(sq_RX.isinf(), -1, index_RX).int()
        best = torch.cat([self.sq_RC, sq_RX], 1).topk(self.sq_RC.shape[1], largest=farthest)
        index_RC = torch.cat([self.index_RC, index_RX], 1).gather(1, best.indices)
        return Best(best.values, index_RC)


def _empty(features: torch.Tensor, search: Search, num_rows: int) -> tuple[Best, Best]:
    """Lists of the rows' nearest and farthest, with nothing in them."""
    num_near = search.num_near(len(features))
    near, far = (
        Best(
            features.new_full((num_rows, size), worst),
            features.new_full((num_rows, size), -1, dtype=torch.int32),
        )
        for size, worst in ((num_near, torch.inf), (NUM_FARTHEST, -torch.inf))
    )
    return near, far


def _candidates(
    features: torch.Tensor, search: Search, row_start: int, row_stop: int
) -> tuple[Best, Best]:
    """The nearest and the farthest of each row by fp32 products."""
    near, far = _empty(features, search, row_stop - row_start)
    rows = features[row_start:row_stop]
    for first, last in search.columns(row_start, len(features)):
        for start, stop in row_blocks(last - first, -(-(last - first) // COLUMNS_ON_DEVICE)):
            start, stop = first + start, first + stop
            sq_RI = tile_distances(rows, features[start:stop])
            # No sample is its own neighbour, and none is far from itself.
            sq_RI.diagonal(row_start - start).fill_(torch.inf)
            near = near.with_tile(sq_RI, start, farthest=False)
            sq_RI.diagonal(row_start - start).fill_(-torch.inf)
            far = far.with_tile(sq_RI, start, farthest=True)
    return near, far


def tile_distances(tile_rows: torch.Tensor, tile_columns: torch.Tensor) -> torch.Tensor:
    """Squared distances of every row to every column by fp32 products, float32."""
    sq_norms_I, sq_norms_J = tile_rows.square().sum(1), tile_columns.square().sum(1)
    with fp32_products():
        products_IJ = tile_rows @ tile_columns.T
    return products_IJ.mul_(-2).add_(sq_norms_I[:, None]).add_(sq_norms_J)


@contextmanager
def fp32_products() -> Iterator[None]:
    """No product on TF32 units, whatever the process allows for training.

    A product is enqueued under the lock: another thread can't change how it is computed.
    """
    with _precision_lock:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


# ---- Candidates by cuVS -----------------------------------------------------------------


def by_cuvs(search: Search) -> Search:
    """The search by candidates that cuVS chooses, on a GPU."""
    return search._replace(by_cuvs=True, operand=ROUNDING_OF_CUVS, slack=SLACK_OF_CUVS)


def check_cuvs(runner: Runner) -> None:
    """Raises ConfigError if cuVS can't search on the runner's device."""
    if not can_import(runner, "cuvs.neighbors"):
        raise ConfigError(
            "cluster.search=cuvs needs a GPU and the package cuvs, and one of them is missing "
            "here; use cluster.search=exact, which finds the same neighbours."
        )


def _candidates_of_cuvs(
    features: torch.Tensor, search: Search, row_start: int, row_stop: int
) -> tuple[Best, Best]:
    """The same by cuVS's brute force, for features of length 1 without groups."""
    from cuvs.neighbors import brute_force  # takes a second, once in a process's life

    near, far = _empty(features, search, row_stop - row_start)
    rows, sq_norm_N = features[row_start:row_stop], features.square().sum(1)
    row_R1 = torch.arange(row_start, row_stop, device=features.device)[:, None]

    def found(metric: str, queries: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = min(size, len(features))
        index_RC = torch.empty((len(rows), size), dtype=torch.int64, device=features.device)
        value_RC = torch.empty((len(rows), size), device=features.device)
        if features.is_cuda:  # cuVS works on a stream of its own
            torch.cuda.current_stream(features.device).synchronize()
        index = brute_force.build(features, metric=metric)
        brute_force.search(index, queries, size, neighbors=index_RC, distances=value_RC)
        return value_RC, index_RC

    # One more, as each sample is among its own nearest, unless its copies fill the list.
    sq_RC, index_RC = found("sqeuclidean", rows, near.sq_RC.shape[1] + 1)
    near = near.with_others(torch.where(index_RC == row_R1, torch.inf, sq_RC), index_RC, False)
    # The farthest from x are the nearest to -x.
    product_RF, index_RF = found("inner_product", -rows, NUM_FARTHEST)
    sq_RF = sq_norm_N[row_R1] + sq_norm_N[index_RF] + 2 * product_RF
    far = far.with_others(torch.where(index_RF == row_R1, -torch.inf, sq_RF), index_RF, True)
    return near, far


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
    rounding = search.rounding(features.shape[1])
    row_R = torch.arange(row_start, row_start + num_rows, device=features.device)
    candidate_RX = torch.cat([near.index_RC, far.index_RC], 1).long()
    i_P = row_R.repeat_interleave(candidate_RX.shape[1], output_size=candidate_RX.numel())
    j_P = candidate_RX.clamp(min=0).flatten()
    sq_RX = squared_distances(features, i_P, j_P, scale).view_as(candidate_RX)
    is_there_RX = candidate_RX >= 0

    # Floats from 0 on are ordered as their bits are: (distance, index) is one integer.
    key_RX = sq_RX.view(torch.int32).long() << 32 | candidate_RX
    key_RC = torch.where(is_there_RX, key_RX, NO_SAMPLE)[:, :num_near]
    key_RC = key_RC.sort(1).values
    is_found_RC = key_RC != NO_SAMPLE
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
