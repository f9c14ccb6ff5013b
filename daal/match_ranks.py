"""The rank of every match of every query, without sorting the gallery.

Shapes: Q queries, B of them in a block, G gallery images, C of them in a chunk, D feature channels,
M matches of a query (padded to the most of any query in the block), P pairs of a query and a
gallery image.

A non-match's place is the number of matches that are nearer than it. Counting the non-matches at
each place gives the ranks of the matches, so that no row of distances is kept.

The ranking is that of squared distances computed in float64 as a sum of squared differences, equal
ones by ascending gallery index, whatever the device, the number of threads and the size of the
blocks. Tiles of distances come from matrix products, whose rounding depends on all of these. So a
non-match that is closer to a match than the products' error bound is measured again, directly.
Products are in float32 first. A tile that they leave with too much to measure (features that have
collapsed, say) is computed again in float64. GPUs begin with float64, which autocast, TF32 and the
like leave alone.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

QUERY_ROWS = GALLERY_ROWS = 2048  # of a tile of distances, at most
TABLE_SIZE = 2**21  # numbers in a table: 16 MB in float64
CACHED_SIZE = 2**18  # numbers that are subtracted at a time: 2 MB stay in a processor's cache
# A direct distance takes as long as 60 elements of a float64 product and what comes after it.
DIRECT_SHARE = 1 / 64


def match_ranks(
    queries_QD: Tensor,
    query_pids_Q: Tensor,
    gallery_GD: Tensor,
    gallery_pids_G: Tensor,
    pair_gallery_P: Tensor,
    num_matches_Q: Tensor,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Blocks of queries (B,), and the ranks of their matches, from 0, ascending: (B, M), rest -1.

    `pair_gallery_P` are the gallery indices of all matches, by ascending query, `num_matches_Q` how
    many of them are a query's. Gallery images of the query's pid that are no match are not
    ranked. Queries without a match are in no block. All tensors lie on one device.
    """
    valid_V = num_matches_Q.nonzero().squeeze(1)
    if len(valid_V) == 0:
        return
    gallery = _survey(gallery_GD, gallery_pids_G)
    first_pair_Q = num_matches_Q.cumsum(0) - num_matches_Q
    for block_B in valid_V.split(max(1, min(QUERY_ROWS, TABLE_SIZE // int(num_matches_Q.max())))):
        slots_M = torch.arange(int(num_matches_Q[block_B].max()), device=block_B.device)
        present_BM = slots_M < num_matches_Q[block_B, None]
        pair_BM = (first_pair_Q[block_B, None] + slots_M).where(present_BM, 0)
        nearer_BM = _count_nearer(
            queries_QD[block_B], query_pids_Q[block_B], gallery, pair_gallery_P[pair_BM], present_BM
        )
        ranks_BM = (slots_M + nearer_BM).where(present_BM, -1)
        yield block_B.numpy(force=True), ranks_BM.numpy(force=True)


class _Gallery(NamedTuple):
    features_GD: Tensor
    pids_G: Tensor
    centre_D: Tensor  # their mean, float64
    radius: float  # the largest distance from there


def _survey(features_GD: Tensor, pids_G: Tensor) -> _Gallery:
    chunks = features_GD.split(GALLERY_ROWS)
    centre_D = torch.stack([chunk.double().sum(0) for chunk in chunks]).sum(0) / len(features_GD)
    norms = torch.stack([(chunk.double() - centre_D).norm(dim=1).max() for chunk in chunks])
    return _Gallery(features_GD, pids_G, centre_D, float(norms.max()))


def _count_nearer(
    queries_BD: Tensor,
    query_pids_B: Tensor,
    gallery: _Gallery,
    index_BM: Tensor,
    present_BM: Tensor,
) -> Tensor:
    """How many non-matches are nearer than each query's nearest match, the next one, ...: (B, M).

    `index_BM` are the matches' gallery indices, ascending, where `present_BM`.
    """
    match_BM = torch.full_like(index_BM, torch.inf, dtype=torch.float64)
    rows_P = present_BM.nonzero()[:, 0]
    match_BM[present_BM] = _distances(queries_BD, rows_P, gallery.features_GD, index_BM[present_BM])
    match_BM, order_BM = match_BM.sort(dim=1, stable=True)  # equal ones stay in the index's order
    index_BM = index_BM.gather(1, order_BM)

    # Distances stay the same if both sides move, but |q|^2 - 2 q.g + |g|^2 rounds less near 0. The
    # first term is the same for a whole row: it is taken off the matches.
    centred_BD = queries_BD.double() - gallery.centre_D
    squares_B = centred_BD.square().sum(1)
    radius = max(gallery.radius, float(squares_B.max()) ** 0.5)
    cuts_BM = match_BM - squares_B[:, None]
    in_range = 1e-10 < radius < 1e10  # of float32, squares too
    rounds = [torch.float32] if in_range and queries_BD.device.type == "cpu" else []

    # at[b, n]: non-matches to which exactly n matches of query b are nearer.
    at_BN = index_BM.new_zeros(len(index_BM), index_BM.shape[1] + 1)
    for start in range(0, len(gallery.pids_G), GALLERY_ROWS):
        chunk = slice(start, start + GALLERY_ROWS)
        centred_CD = gallery.features_GD[chunk].double() - gallery.centre_D
        for dtype in (*rounds, torch.float64):
            tile_BC = _tile(centred_BD.to(dtype), centred_CD.to(dtype), centred_CD.square().sum(1))
            # Matches are ranked among themselves, and junk isn't ranked at all: beyond all matches.
            ranked_BC = query_pids_B[:, None] != gallery.pids_G[chunk]
            tile_BC.masked_fill_(~ranked_BC, torch.finfo(dtype).max)
            band = _error_bound(dtype, radius, queries_BD.shape[1])
            place_BC = torch.searchsorted((cuts_BM - band).to(dtype), tile_BC, right=True)
            surely_BC = torch.searchsorted((cuts_BM + band).to(dtype), tile_BC)
            row_P, column_P = (place_BC != surely_BC).nonzero(as_tuple=True)
            if dtype == torch.float64 or len(row_P) <= DIRECT_SHARE * tile_BC.numel():
                break
        place_BC[row_P, column_P] = _places(
            queries_BD, row_P, gallery.features_GD, column_P + start, match_BM, index_BM
        )
        at_BN.scatter_add_(1, place_BC, torch.ones_like(place_BC))
    return at_BN.cumsum(1)[:, :-1]


def _tile(queries_BD: Tensor, chunk_CD: Tensor, squares_C: Tensor) -> Tensor:
    """|g|^2 - 2 q.g, of the products' dtype."""
    if queries_BD.device.type == "cpu":
        # NumPy's BLAS: torch's is slow on processors that are not of its maker, and rounds to
        # bf16 where a process allows that for training.
        tile_BC = torch.from_numpy(np.matmul(queries_BD.numpy(), chunk_CD.numpy().T))
    else:
        tile_BC = torch.mm(queries_BD, chunk_CD.T)
    return tile_BC.mul_(-2).add_(squares_C.to(tile_BC.dtype))


def _error_bound(dtype: torch.dtype, radius: float, num_channels: int) -> float:
    """How far |g|^2 - 2 q.g and a match's distance, less |q|^2, may be off in all.

    A sum of n products is off by L sqrt(n) roundings of |q| |g|, or less, in all but a share of
    about exp(-L^2 / 2) of cases (Higham and Mary 2019, A New Approach to Probabilistic Rounding
    Error Analysis). That takes each partial sum for the largest and each rounding for the worst;
    real ones spread less than 0.6 sqrt(n), so that L = 5 is more than 8 standard deviations. The
    64 stands for rounding the operands, |g|^2, its addition and the bands' ends. Direct sums,
    squares and centring are in float64.
    """
    rounding = torch.finfo(dtype).eps / 2
    relative = rounding * (2 * 5 * num_channels**0.5 + 64) + 2.0**-51 * (num_channels + 64)
    return relative * radius**2


def _places(
    queries_BD: Tensor,
    rows_P: Tensor,
    gallery_GD: Tensor,
    columns_P: Tensor,
    match_BM: Tensor,
    index_BM: Tensor,
) -> Tensor:
    """How many matches of its query rank before each of these non-matches: int64 (P,)."""
    places_P = torch.zeros_like(rows_P)
    step = max(1, TABLE_SIZE // match_BM.shape[1])
    for start in range(0, len(rows_P), step):
        rows_S, columns_S = rows_P[start : start + step], columns_P[start : start + step]
        distance_S1 = _distances(queries_BD, rows_S, gallery_GD, columns_S)[:, None]
        match_SM = match_BM[rows_S]
        tied_SM = (match_SM == distance_S1) & (index_BM[rows_S] < columns_S[:, None])
        places_P[start : start + step] = ((match_SM < distance_S1) | tied_SM).sum(1)
    return places_P


def _distances(queries_BD: Tensor, rows_P: Tensor, gallery_GD: Tensor, columns_P: Tensor) -> Tensor:
    """Squared distance of each pair as a sum of squared differences: float64 (P,).

    The channels are added by halving, in elementwise operations, so that the order of additions is
    the same however many pairs there are and on any device: copies tie to the last bit.
    `Tensor.sum` doesn't promise that.
    """
    num_channels = queries_BD.shape[1]
    distances_P = queries_BD.new_zeros(len(rows_P), dtype=torch.float64)
    step = max(1, CACHED_SIZE // max(1, num_channels))
    for start in range(0, len(rows_P) if num_channels else 0, step):
        pairs = slice(start, start + step)
        terms_SD = queries_BD[rows_P[pairs]].double().sub_(gallery_GD[columns_P[pairs]].double())
        terms_SD.square_()
        while (width := terms_SD.shape[1]) > 1:
            half, last_S = width // 2, terms_SD[:, -1]
            terms_SD = terms_SD[:, :half].add_(terms_SD[:, half : 2 * half])
            if width % 2:
                terms_SD[:, 0] += last_S
        distances_P[pairs] = terms_SD[:, 0]
    return distances_P
