"""The rank of every match of every query, without keeping any row of distances.

Shapes: Q queries, B of them in a block, G gallery images, C of them in a chunk, D feature channels,
M matches of a query (padded to the most of any query in the block), P pairs of a query and a
gallery image, K matches with a non-match too close to tell.

A match's rank is the number of nearer matches and nearer non-matches. The latter are counted tile
by tile: a tile's rows are sorted, and each match looks up how many values come before its own.

The ranking is that of squared distances computed in float64 as a sum of squared differences, equal
ones by ascending gallery index, whatever the device, the number of threads and the size of the
blocks. Tiles of distances come from matrix products, whose rounding depends on all of these. So a
non-match that is closer to a match than the products' error bound is measured again, directly.
Products are in float32 first. A tile that they leave with too much to measure (features that have
collapsed, say) is computed again in float64. GPUs begin with float64, which autocast, TF32 and the
like leave alone.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

QUERY_ROWS, GALLERY_ROWS = 3072, 2048  # of a tile of distances, at most
TABLE_SIZE = 2**21  # numbers in a table: 16 MB in float64
CACHED_SIZE = 2**18  # numbers that are subtracted at a time: 2 MB stay in a processor's cache
# A direct distance takes as long as 250 elements of a float64 product and what comes after it.
DIRECT_SHARE = 1 / 256
_Map: TypeAlias = Callable[..., Iterator[Any]]
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

    def ranks(block_B: Tensor, gallery: _Gallery) -> NDArray[np.int64]:
        slots_M = torch.arange(int(num_matches_Q[block_B].max()), device=block_B.device)
        present_BM = slots_M < num_matches_Q[block_B, None]
        pair_BM = (first_pair_Q[block_B, None] + slots_M).where(present_BM, 0)
        nearer_BM = _count_nearer(
            queries_QD[block_B], query_pids_Q[block_B], gallery, pair_gallery_P[pair_BM], present_BM
        )
        return (slots_M + nearer_BM).where(present_BM, -1).numpy(force=True)

    with _threads(queries_QD.device) as (num_threads, parallel_map):
        gallery = _survey(gallery_GD, gallery_pids_G, parallel_map)
        rows = min(QUERY_ROWS, TABLE_SIZE // int(num_matches_Q.max()))
        rows = max(1, min(rows, -(-len(valid_V) // num_threads)))
        blocks = torch.split(valid_V, rows)
        found = parallel_map(ranks, blocks, [gallery] * len(blocks))
        for block_B, ranks_BM in zip(blocks, found, strict=True):
            yield block_B.numpy(force=True), ranks_BM


@contextmanager
def _threads(device: torch.device) -> Iterator[tuple[int, _Map]]:
    """How many threads do the work, and a `map` that they share.

    On CPUs each thread works alone on its own block. If torch and BLAS split operations between
    threads, these would wait for each other after every one: on a busy machine, most of the time.
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
    centre_D: Tensor  # their mean, float64
    squares_G: Tensor  # squared distances from there, float64


def _survey(features_GD: Tensor, pids_G: Tensor, parallel_map: _Map) -> _Gallery:
    chunks = torch.split(features_GD, GALLERY_ROWS)
    sums = parallel_map(lambda chunk: sum(some.double().sum(0) for some in _pieces(chunk)), chunks)
    centre_D = torch.stack(list(sums)).sum(0) / len(features_GD)
    squares = parallel_map(lambda chunk: _squares(chunk, centre_D), chunks)
    return _Gallery(features_GD, pids_G, centre_D, torch.cat(list(squares)))


def _pieces(features_ND: Tensor) -> tuple[Tensor, ...]:
    """Parts that stay in a processor's cache while they are worked on in float64."""
    return torch.split(features_ND, max(1, CACHED_SIZE // max(1, features_ND.shape[1])))


def _squares(features_ND: Tensor, centre_D: Tensor) -> Tensor:
    return torch.cat([(some.double() - centre_D).square_().sum(1) for some in _pieces(features_ND)])


def _centred(features_ND: Tensor, centre_D: Tensor, dtype: torch.dtype) -> Tensor:
    centred_ND = torch.empty_like(features_ND, dtype=dtype)
    for some, place in zip(_pieces(features_ND), _pieces(centred_ND), strict=True):
        place.copy_(some.double() - centre_D)
    return centred_ND


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
    squares_B, centre_D = _squares(queries_BD, gallery.centre_D), gallery.centre_D
    radius = max(float(gallery.squares_G.max()), float(squares_B.max())) ** 0.5
    cuts_BM = match_BM - squares_B[:, None]
    in_range = 1e-10 < radius < 1e10  # of float32, squares too
    on_cpu = queries_BD.device.type == "cpu"
    rounds = [torch.float32, torch.float64] if in_range and on_cpu else [torch.float64]

    nearer_BM = torch.zeros_like(index_BM)
    minus_two_BD: dict[torch.dtype, Tensor] = {}
    for start in range(0, len(gallery.pids_G), GALLERY_ROWS):
        chunk = slice(start, start + GALLERY_ROWS)
        # Matches are ranked among themselves, and junk isn't ranked at all.
        unranked_BC = query_pids_B[:, None] == gallery.pids_G[chunk]
        for dtype in rounds:
            if dtype not in minus_two_BD:
                minus_two_BD[dtype] = -2 * _centred(queries_BD, centre_D, dtype)
            tile_BC = _tile(
                minus_two_BD[dtype],
                _centred(gallery.features_GD[chunk], centre_D, dtype),
                gallery.squares_G[chunk],
            )
            tile_BC.masked_fill_(unranked_BC, torch.finfo(dtype).max)  # beyond all matches
            sorted_BC = _sorted(tile_BC)
            band = _error_bound(dtype, radius, queries_BD.shape[1])
            low_BM, high_BM = (cuts_BM - band).to(dtype), (cuts_BM + band).to(dtype)
            surely_BM = torch.searchsorted(sorted_BC, low_BM)
            open_BM = torch.searchsorted(sorted_BC, high_BM, right=True) - surely_BM
            if dtype == torch.float64 or int(open_BM.sum()) <= DIRECT_SHARE * tile_BC.numel():
                break
        nearer_BM += surely_BM
        row_K, slot_K = open_BM.nonzero(as_tuple=True)
        step = max(1, TABLE_SIZE // GALLERY_ROWS)
        for row_S, slot_S in zip(torch.split(row_K, step), torch.split(slot_K, step), strict=True):
            tile_SC, ends_S = tile_BC[row_S], (low_BM[row_S, slot_S], high_BM[row_S, slot_S])
            inside_SC = (ends_S[0][:, None] <= tile_SC) & (tile_SC <= ends_S[1][:, None])
            at_P, column_P = inside_SC.nonzero(as_tuple=True)
            row_P, slot_P, column_P = row_S[at_P], slot_S[at_P], column_P + start
            # Bands of a query's matches may overlap; a pair is measured once.
            pairs, pair_of_P = torch.unique(
                torch.stack([row_P, column_P]), dim=1, return_inverse=True
            )
            distance_P = _distances(queries_BD, pairs[0], gallery.features_GD, pairs[1])[pair_of_P]
            match_P, index_P = match_BM[row_P, slot_P], index_BM[row_P, slot_P]
            is_nearer_P = (distance_P < match_P) | (distance_P == match_P) & (column_P < index_P)
            nearer_BM.index_put_((row_P, slot_P), is_nearer_P.long(), accumulate=True)
    return nearer_BM


def _tile(minus_two_BD: Tensor, chunk_CD: Tensor, squares_C: Tensor) -> Tensor:
    """|g|^2 - 2 q.g of -2 q, g and |g|^2, of the products' dtype."""
    if minus_two_BD.device.type == "cpu":
        # NumPy's BLAS: torch's is slow on processors that are not of its maker, and rounds to
        # bf16 where a process allows that for training.
        tile_BC = torch.from_numpy(np.matmul(minus_two_BD.numpy(), chunk_CD.numpy().T))
    else:
        tile_BC = torch.mm(minus_two_BD, chunk_CD.T)
    return tile_BC.add_(squares_C.to(tile_BC.dtype))


def _sorted(tile_BC: Tensor) -> Tensor:
    if tile_BC.device.type == "cpu":  # NumPy sorts many times faster than torch
        return torch.from_numpy(np.sort(tile_BC.numpy(), axis=1))
    return tile_BC.sort(dim=1).values


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
    relative: float = rounding * (2 * 5 * num_channels**0.5 + 64) + 2.0**-51 * (num_channels + 64)
    return relative * radius * radius


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
