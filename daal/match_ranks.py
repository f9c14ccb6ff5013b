"""The rank of every match of every query, without putting any ranking in order.

Shapes: Q queries, B of them in a block, G gallery images, C of them in a chunk, D feature channels,
M matches of a query (padded to the most of any query in the block), P pairs of a query and
a gallery image.

The distances of a query's matches cut the real line into intervals, and counting the non-matches
that fall into each gives the ranks. So no row of distances is kept.

The ranking is that of squared distances computed in float64 as a sum of squared differences, equal
ones by ascending gallery index, whatever the device, the number of threads and the size of the
blocks. Tiles of distances come from matrix products, whose rounding depends on all of these; so
non-matches that come closer to a match than the products' error bound are measured again, directly.
On CPUs a first round of products, in float32, tells nearly all of them apart. A second, in float64,
is for queries that it leaves too much to measure (features that have collapsed, say): there the
bound is so small that it holds exact copies and little else. GPUs begin with float64: it is what
autocast, TF32 and the like leave alone.

Memory: tables and tiles of a fixed size for each thread, whatever Q and G.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from daal.float64_distance import cached, centred, direct_distance, squares

QUERY_ROWS = 2048  # of a tile of distances, at most
GALLERY_ROWS = 2048
GALLERY_ROWS_ON_GPU = 8192
TABLE_SIZE = 2**21  # numbers in a table: 16 MB in float64; a thread holds a dozen
# A direct distance takes as long as 60 elements of a float64 product and what comes after it.
# Queries that need more than one for so many gallery images go on to float64.
DIRECT_SHARE = 1 / 64
DIRECT_AT_LEAST = 32  # before the share says anything
UNDERFLOW = 2.0**-100  # more than all float32 underflows of features scaled to length 1
_Map: TypeAlias = Callable[[Callable[[Tensor], Any], Sequence[Tensor]], Iterator[Any]]
_settings_lock = threading.Lock()  # torch and BLAS have one set of them for the whole process


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
    first_pair_Q = num_matches_Q.cumsum(0) - num_matches_Q
    rows = max(1, min(QUERY_ROWS, TABLE_SIZE // (2 * int(num_matches_Q.max()))))
    with _workers(queries_QD.device) as (num_workers, each):
        gallery = _survey(each, gallery_GD, gallery_pids_G)
        num_blocks = -(-len(valid_V) // (rows * num_workers)) * num_workers
        blocks = torch.tensor_split(valid_V, min(num_blocks, len(valid_V)))
        ranks = each(
            lambda block_B: _ranks_of_block(
                *(queries_QD[block_B], query_pids_Q[block_B], gallery, pair_gallery_P),
                *(first_pair_Q[block_B], num_matches_Q[block_B]),
            ).numpy(force=True),
            blocks,
        )
        for block_B, ranks_BM in zip(blocks, ranks, strict=True):
            yield block_B.numpy(force=True), ranks_BM


@contextmanager
def _workers(device: torch.device) -> Iterator[tuple[int, _Map]]:
    """How many threads do the work, and a `map` that they share.

    On CPUs each works alone on its own queries, and neither torch nor BLAS splits an operation
    between threads, who would wait for each other after every one.
    """
    if device.type != "cpu":
        yield 1, map
        return
    with _settings_lock:
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with threadpool_limits(1, "blas"), ThreadPoolExecutor(num_threads) as pool:
                yield num_threads, pool.map
        finally:
            torch.set_num_threads(num_threads)


class _Gallery(NamedTuple):
    features_GD: Tensor
    pids_G: Tensor
    centre_D: Tensor  # the mean, float64
    squares_G: Tensor  # squared distances from there, float64
    copy_of_G: Tensor  # index of an image with the same features: one and the same for all copies


def _survey(each: _Map, features_GD: Tensor, pids_G: Tensor) -> _Gallery:
    """What all queries need to know of the gallery."""
    chunks = torch.split(features_GD, GALLERY_ROWS)
    sums = each(lambda chunk: sum(some.double().sum(0) for some in cached(chunk)), chunks)
    centre_D = torch.stack(list(sums)).sum(0) / len(features_GD)
    squares_G = torch.cat(list(each(lambda chunk: squares(chunk, centre_D), chunks)))
    # Copies have equal norms. Should rounding tell norms of copies apart, or others' norms come
    # between them, they are measured twice; the result is the same.
    sorted_G, order_G = squares_G.sort(stable=True)
    is_copy_G = torch.zeros_like(order_G, dtype=torch.bool)
    is_copy_G[1:] = sorted_G[1:] == sorted_G[:-1]
    for place_S in torch.split(is_copy_G.nonzero().squeeze(1), GALLERY_ROWS):
        same_SD = features_GD[order_G[place_S]] == features_GD[order_G[place_S - 1]]
        is_copy_G[place_S] = same_SD.all(1)
    copy_of_G = torch.empty_like(order_G)
    copy_of_G[order_G] = order_G[~is_copy_G][(~is_copy_G).cumsum(0) - 1]
    return _Gallery(features_GD, pids_G, centre_D, squares_G, copy_of_G)


def _ranks_of_block(
    queries_BD: Tensor,
    query_pids_B: Tensor,
    gallery: _Gallery,
    pair_gallery_P: Tensor,
    first_pair_B: Tensor,
    num_matches_B: Tensor,
) -> Tensor:
    """Rank of every match of a block of queries: int64 (B, M)."""
    device = queries_BD.device
    slots_M = torch.arange(int(num_matches_B.max()), device=device)
    present_BM = slots_M < num_matches_B[:, None]
    rows_P, slot_P = present_BM.nonzero(as_tuple=True)
    columns_P = pair_gallery_P[first_pair_B[rows_P] + slot_P]

    # A stable sort keeps the ascending gallery index among equal distances.
    match_BM = torch.full(present_BM.shape, torch.inf, dtype=torch.float64, device=device)
    match_BM[present_BM] = direct_distance(queries_BD, rows_P, gallery.features_GD, columns_P)
    match_BM, order_BM = match_BM.sort(dim=1, stable=True)
    index_BM = torch.zeros_like(order_BM)
    index_BM[present_BM] = columns_P
    index_BM = index_BM.gather(1, order_BM)

    nearer_BM = torch.zeros_like(order_BM)
    left_R = torch.arange(len(queries_BD), device=device)
    for dtype in (torch.float32, torch.float64) if device.type == "cpu" else (torch.float64,):
        if len(left_R) == 0:
            break
        nearer_RM, given_up_R = _count_nearer(
            *(dtype, queries_BD[left_R], query_pids_B[left_R], gallery),
            *(match_BM[left_R], index_BM[left_R], num_matches_B[left_R]),
        )
        nearer_BM[left_R] = nearer_RM
        left_R = left_R[given_up_R]
    return (slots_M + nearer_BM).where(present_BM, -1)


def _count_nearer(
    dtype: torch.dtype,
    queries_BD: Tensor,
    query_pids_B: Tensor,
    gallery: _Gallery,
    match_BM: Tensor,
    index_BM: Tensor,
    num_matches_B: Tensor,
) -> tuple[Tensor, Tensor]:
    """How many non-matches rank before each match (B, M), by products of `dtype`.

    The second result is true of queries given up (B,): float32 left too much open.
    """
    # A power of two keeps float32 from overflows, and changes no digit.
    squares_B, squares_G = squares(queries_BD, gallery.centre_D), gallery.squares_G
    _, exponent = math.frexp(max(float(squares_B.max()), float(squares_G.max())) ** 0.5)
    scale = math.ldexp(1.0, min(max(-exponent, -500), 500))
    squares_B, squares_G = squares_B * scale**2, squares_G * scale**2
    # |q|^2 is the same for a whole row: it is taken off the matches instead of added to the tile.
    cuts = _cut(
        match_BM * scale**2 - squares_B[:, None],
        _error_bound(dtype, squares_B.sqrt(), squares_G.max().sqrt(), queries_BD.shape[1]),
        num_matches_B,
        dtype,
    )

    # nearer[b, n]: non-matches behind exactly the first n matches of query b.
    nearer_BN = index_BM.new_zeros(len(index_BM), index_BM.shape[1] + 1)
    clear_BE = torch.zeros_like(cuts.beaten_BE)
    num_unclear_B = torch.zeros_like(num_matches_B)
    given_up_B = torch.zeros_like(num_matches_B, dtype=torch.bool)
    step = GALLERY_ROWS if queries_BD.device.type == "cpu" else GALLERY_ROWS_ON_GPU
    step = min(step, len(gallery.pids_G))
    # Made once: memory fresh from the system costs as much as what is done in it.
    minus_two_BD, chunk_buffer_CD = (
        torch.empty(rows, queries_BD.shape[1], dtype=dtype, device=queries_BD.device)
        for rows in (len(queries_BD), step)
    )
    tile_buffer, sort_buffer = minus_two_BD.new_empty(2, len(queries_BD) * step)
    centred(queries_BD, gallery.centre_D, -2 * scale, minus_two_BD)
    for start in range(0, len(gallery.pids_G), step):
        chunk = slice(start, start + step)
        features_CD, pids_C = gallery.features_GD[chunk], gallery.pids_G[chunk]
        chunk_CD = centred(features_CD, gallery.centre_D, scale, chunk_buffer_CD[: len(pids_C)])
        tile_BC = tile_buffer[: len(queries_BD) * len(pids_C)].view(-1, len(pids_C))
        _fill_tile(tile_BC, minus_two_BD, chunk_CD, squares_G[chunk].to(dtype))
        # Matches are ranked among themselves, and junk isn't ranked at all: to infinity.
        tile_BC.masked_fill_(query_pids_B[:, None] == pids_C, torch.inf)
        count_BE = _count(tile_BC, cuts, sort_buffer)
        clear_BE += count_BE
        count_BE *= cuts.is_unclear_BE
        num_unclear_B += count_BE.sum(1)
        if dtype == torch.float32:
            given_up_B |= num_unclear_B > DIRECT_AT_LEAST + DIRECT_SHARE * (start + len(pids_C))
            count_BE *= ~given_up_B[:, None]
        row_K, end_K = count_BE.nonzero(as_tuple=True)
        low_K, high_K = cuts.ends_BE[row_K, end_K - 1], cuts.ends_BE[row_K, end_K]
        row_P, column_P = _within(tile_BC, row_K, low_K, high_K)
        _count_directly(nearer_BN, queries_BD, row_P, gallery, column_P + start, match_BM, index_BM)
    nearer_BN.scatter_add_(1, cuts.beaten_BE, clear_BE * ~cuts.is_unclear_BE)
    # A non-match behind the first n matches is in front of all later ones.
    return nearer_BN.cumsum(1)[:, :-1], given_up_B


class _Cuts(NamedTuple):
    """The two ends of each match's band, sorted, cut the line into buckets: E = 2 M.

    Within a band the matrix product can't tell nearer from farther. Bucket e ends before end e;
    matches 0..beaten-1 are certainly nearer than an element in it.
    """

    ends_BE: Tensor
    last_end_B1: Tensor  # without padding
    beaten_BE: Tensor
    is_unclear_BE: Tensor


def _cut(match_BM: Tensor, band_B: Tensor, num_matches_B: Tensor, dtype: torch.dtype) -> _Cuts:
    ends_BE = torch.cat([match_BM - band_B[:, None], match_BM + band_B[:, None]], dim=1)
    ends_BE, order_BE = ends_BE.sort(dim=1)
    ends_BE = ends_BE.to(dtype)
    closes_BE = (order_BE >= match_BM.shape[1]).long()
    beaten_BE = closes_BE.cumsum(1) - closes_BE
    opened_BE = torch.arange(beaten_BE.shape[1], device=beaten_BE.device) - beaten_BE
    last_end_B1 = ends_BE.gather(1, 2 * num_matches_B[:, None] - 1)
    return _Cuts(ends_BE, last_end_B1, beaten_BE, opened_BE != beaten_BE)


def _error_bound(dtype: torch.dtype, norm_B: Tensor, radius: Tensor, num_channels: int) -> Tensor:
    """How far |g|^2 - 2 q.g and a match's distance, less |q|^2, may be off in all: float64 (B,).

    A sum of n products is off by L sqrt(n) roundings of |q| |g|, or less, in all but a share of
    about exp(-L^2 / 2) of cases (Higham and Mary 2019, A New Approach to Probabilistic Rounding
    Error Analysis). That takes each partial sum for the largest and each rounding for the worst;
    real ones spread less than 0.6 sqrt(n), so that L = 5 is more than 8 standard deviations. The
    factor 16 stands for rounding the operands, |g|^2, its addition and the bands' ends. Direct
    sums, squares and centring are in float64.
    """
    rounding = torch.finfo(dtype).eps / 2
    most_B = (norm_B + radius).square()
    bound_B: Tensor = (
        rounding * (2 * 5 * num_channels**0.5 * norm_B * radius + 16 * most_B)
        + 2.0**-53 * (num_channels + 64) * most_B
        + UNDERFLOW
    )
    return bound_B


def _fill_tile(tile_BC: Tensor, minus_two_BD: Tensor, chunk_CD: Tensor, squares_C: Tensor) -> None:
    """|g|^2 - 2 q.g into the tile."""
    if tile_BC.device.type == "cpu":
        # NumPy's BLAS: torch's is slow on processors that are not of its maker, and rounds to
        # bf16 where a process allows that for training.
        np.matmul(minus_two_BD.numpy(), chunk_CD.numpy().T, out=tile_BC.numpy())
    else:
        torch.mm(minus_two_BD, chunk_CD.T, out=tile_BC)
    tile_BC += squares_C


def _count(tile_BC: Tensor, cuts: _Cuts, buffer: Tensor) -> Tensor:
    """How many elements of a row lie before each end, but not before the end before: (B, E)."""
    if tile_BC.device.type == "cpu":
        # NumPy sorts faster than anybody looks up all elements among the ends. Nothing
        # beyond the last end counts, and equal numbers are sorted at once.
        sorted_BC = buffer[: tile_BC.numel()].view_as(tile_BC)
        torch.minimum(tile_BC, cuts.last_end_B1, out=sorted_BC)
        sorted_BC.numpy().sort(axis=1)
        before_BE = torch.searchsorted(sorted_BC, cuts.ends_BE)
        return before_BE.diff(dim=1, prepend=torch.zeros_like(before_BE[:, :1]))
    return _count_by_bucket(tile_BC, cuts.ends_BE)


def _count_by_bucket(tile_BC: Tensor, ends_BE: Tensor) -> Tensor:
    num_rows, num_buckets = len(ends_BE), ends_BE.shape[1] + 1
    bucket_BC = torch.searchsorted(ends_BE, tile_BC, right=True)
    bucket_BC += torch.arange(num_rows, device=bucket_BC.device)[:, None] * num_buckets
    counts = torch.bincount(bucket_BC.flatten(), minlength=num_rows * num_buckets)
    return counts.view(num_rows, num_buckets)[:, :-1]


def _within(tile_BC: Tensor, row_K: Tensor, low_K: Tensor, high_K: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of all elements of intervals low <= x < high of rows: (P,), (P,)."""
    step = max(1, TABLE_SIZE // tile_BC.shape[1])
    rows, columns = [], []
    for row_S, low_S, high_S in zip(
        *(torch.split(some_K, step) for some_K in (row_K, low_K, high_K)), strict=True
    ):
        values_SC = tile_BC[row_S]
        inside_SC = (low_S[:, None] <= values_SC).logical_and_(values_SC < high_S[:, None])
        place_P, column_P = inside_SC.nonzero(as_tuple=True)
        rows.append(row_S[place_P])
        columns.append(column_P)
    return torch.cat(rows), torch.cat(columns)


def _count_directly(
    nearer_BN: Tensor,
    queries_BD: Tensor,
    rows_P: Tensor,
    gallery: _Gallery,
    columns_P: Tensor,
    match_BM: Tensor,
    index_BM: Tensor,
) -> None:
    """Add to `nearer_BN` the non-matches (pairs of row and column) that came too close to call."""
    # Features that have collapsed into few values make each pair too close to call; so the distance
    # to an image and to its copies is taken once.
    num_gallery = len(gallery.pids_G)
    pairs_K, pair_of_P = torch.unique(
        rows_P * num_gallery + gallery.copy_of_G[columns_P], return_inverse=True
    )
    distance_K = direct_distance(
        queries_BD, pairs_K // num_gallery, gallery.features_GD, pairs_K % num_gallery
    )
    step = max(1, TABLE_SIZE // match_BM.shape[1])
    for rows_S, columns_S, pair_of_S in zip(
        *(torch.split(some_P, step) for some_P in (rows_P, columns_P, pair_of_P)), strict=True
    ):
        distance_S1 = distance_K[pair_of_S][:, None]
        match_SM, index_SM = match_BM[rows_S], index_BM[rows_S]
        tied_SM = (match_SM == distance_S1) & (index_SM < columns_S[:, None])
        behind_S = ((match_SM < distance_S1) | tied_SM).sum(1)
        cell_S = rows_S * nearer_BN.shape[1] + behind_S
        nearer_BN.view(-1).scatter_add_(0, cell_S, torch.ones_like(cell_S))
