"""CMC and mean average precision under the Market-1501 protocol.

Shapes: Q queries, G gallery images, D feature channels, M matches of a query (padded to
the most of any query in the block), P pairs of a query and a gallery image.

The protocol (Zheng et al. 2015, "Scalable Person Re-identification: A Benchmark"):

- gallery images of pid -1 (junk boxes) are dropped before ranking;
- distractors (pid 0 in Market-1501) are ranked like any image, and wrong because no query has
  their pid; MSMT17's pid 0 is a person like others; unknown identities (negative) match nothing;
- gallery images with the query's pid and camid are left out of that query's ranking;
- a query with no match left is skipped: no figure counts it;
- the gallery is ranked by ascending squared Euclidean distance of the features as given (normalise
  them first, if they should be), equal distances by ascending gallery index.

Average precision has two readings in the literature, and both are returned. The rectangle
rule is the mean precision at the matches, and what torchreid, fast-reid and scikit-learn
compute; the trapezoid rule of Oxford-5k and of Market-1501's own MATLAB code averages the
precision at a match with that just before it, and is lower.

How it is computed: only the ranks of matches matter, so no row of distances is kept or put in
order as a whole. The distances of a query's matches cut the real line into intervals, and counting
the non-matches that fall into each gives the ranks.

The ranking is that of the distances computed in float64 as a sum of squared differences,
whatever the device, the number of threads and the size of the blocks. A tile comes from matrix
products, whose rounding depends on all of these; so non-matches that come closer to a match
than its error bound are measured again, directly. There are two rounds of products:

1. in float32, on CPUs, which tell nearly all non-matches of a usable model apart;
2. in float64 for the queries with too many left to measure: there the bound is so small (1e-12
   for unit features) that it holds exact copies and little else. GPUs begin here: it is what
   autocast, TF32 and the like leave alone.

Memory: tables and tiles of a fixed size for each thread, whatever Q and G.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from daal.errors import DataError
from daal.records import JUNK_PID

QUERY_ROWS = 2048  # of a tile of distances, at most
GALLERY_ROWS = 1024
GALLERY_ROWS_ON_GPU = 8192
CHANNELS = 512  # added up in one product: the error bound grows with them
TABLE_SIZE = 2**21  # numbers in a table: 16 MB in float64; a thread holds a dozen
CACHED_SIZE = 2**18  # numbers in what is done in float64: 2 MB stay in a processor's cache
CACHED_SIZE_ON_GPU = 2**22
# A direct distance takes as long as 60 elements of a float64 product and what comes after it.
# Queries that need more than one for so many gallery images go on to float64.
DIRECT_SHARE = 1 / 64
DIRECT_AT_LEAST = 32  # before the share says anything
UNDERFLOW = 2.0**-100  # more than all float32 underflows of features scaled to length 1
_Map: TypeAlias = Callable[[Callable[[Tensor], Any], Sequence[Tensor]], Iterator[Any]]
_settings_lock = threading.Lock()  # torch has one set of them for the whole process


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """All figures are fractions in 0-1, and NaN where no query could be scored."""

    cmc: NDArray[np.float64]  # (max_rank,): cmc[k-1] is rank-k accuracy
    map: float  # rectangle rule: the headline figure
    map_official: float  # trapezoid rule
    num_valid_queries: int
    ap: NDArray[np.float64]  # (Q,), rectangle rule, NaN = skipped query
    ap_official: NDArray[np.float64]  # (Q,), trapezoid rule, NaN = skipped query
    first_match_rank: NDArray[np.int64]  # (Q,), from 0, -1 = skipped query

    def rank(self, k: int) -> float:
        """Rank-k accuracy, k from 1. Raises IndexError beyond the `max_rank` asked for."""
        if not 1 <= k <= len(self.cmc):
            raise IndexError(f"rank {k} is outside 1..{len(self.cmc)}")
        return float(self.cmc[k - 1])

    def as_dict(self) -> dict[str, float | int]:
        """The figures that a run's summary keeps; ranks beyond `max_rank` are absent."""
        ranks = {f"rank{k}": self.rank(k) for k in (1, 5, 10, 20) if k <= len(self.cmc)}
        return {
            "map": self.map,
            "map_official": self.map_official,
            **ranks,
            "num_valid_queries": self.num_valid_queries,
        }


def evaluate(
    query_features: Tensor | ArrayLike,
    query_pids: Tensor | ArrayLike,
    query_camids: Tensor | ArrayLike,
    gallery_features: Tensor | ArrayLike,
    gallery_pids: Tensor | ArrayLike,
    gallery_camids: Tensor | ArrayLike,
    *,
    max_rank: int = 50,
    device: torch.device | str | None = None,
) -> EvaluationResult:
    """Score a retrieval of queries in a gallery; the module's docstring has the rules.

    Features are (Q, D) and (G, D) of any real dtype, pids and camids integers (Q,) and (G,), as
    NumPy arrays or tensors. `device` does the work; by default the one that holds the query
    features. The curve always has `max_rank` values: beyond the gallery's size it stays
    at its last one.

    Raises DataError if shapes don't fit together or a feature isn't finite.
    """
    if max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, not {max_rank}")
    queries_QD = torch.as_tensor(query_features).detach()
    device = queries_QD.device if device is None else torch.device(device)
    queries_QD = queries_QD.to(device)
    gallery_GD = torch.as_tensor(gallery_features).detach().to(device)
    query_pids_Q, query_camids_Q = _ids(query_pids, device), _ids(query_camids, device)
    gallery_pids_G, gallery_camids_G = _ids(gallery_pids, device), _ids(gallery_camids, device)
    _check("query", queries_QD, query_pids_Q, query_camids_Q)
    _check("gallery", gallery_GD, gallery_pids_G, gallery_camids_G)
    if queries_QD.shape[1] != gallery_GD.shape[1]:
        raise DataError(
            f"query features have {queries_QD.shape[1]} channels and gallery features "
            f"{gallery_GD.shape[1]}; extract both with the same checkpoint"
        )

    kept_G = gallery_pids_G != JUNK_PID
    if not bool(kept_G.all()):
        gallery_GD, gallery_pids_G = gallery_GD[kept_G], gallery_pids_G[kept_G]
        gallery_camids_G = gallery_camids_G[kept_G]

    pair_query_P, pair_gallery_P = _matches(
        query_pids_Q, query_camids_Q, gallery_pids_G, gallery_camids_G
    )
    num_matches_Q = torch.bincount(pair_query_P, minlength=len(queries_QD))
    valid_V = num_matches_Q.nonzero().squeeze(1)

    ap = np.full(len(queries_QD), np.nan)
    ap_official = np.full(len(queries_QD), np.nan)
    first_match_rank = np.full(len(queries_QD), -1, dtype=np.int64)
    if len(valid_V):
        first_pair_Q = num_matches_Q.cumsum(0) - num_matches_Q
        rows = max(1, min(QUERY_ROWS, TABLE_SIZE // (2 * int(num_matches_Q.max()))))
        with _workers(device) as (num_workers, each):
            gallery = _survey(each, gallery_GD, gallery_pids_G)
            num_blocks = -(-len(valid_V) // (rows * num_workers)) * num_workers
            blocks = torch.tensor_split(valid_V, min(num_blocks, len(valid_V)))
            ranks = each(
                lambda block_B: _match_ranks(
                    queries_QD[block_B],
                    query_pids_Q[block_B],
                    gallery,
                    pair_gallery_P,
                    first_pair_Q[block_B],
                    num_matches_Q[block_B],
                ).numpy(force=True),
                blocks,
            )
            for block_B, ranks_BM in zip(blocks, ranks, strict=True):
                at = block_B.cpu().numpy()
                first_match_rank[at] = ranks_BM[:, 0]
                ap[at], ap_official[at] = _average_precision(ranks_BM)

    num_valid = len(valid_V)
    if num_valid == 0:
        return EvaluationResult(
            cmc=np.full(max_rank, np.nan),
            map=float("nan"),
            map_official=float("nan"),
            num_valid_queries=0,
            ap=ap,
            ap_official=ap_official,
            first_match_rank=first_match_rank,
        )
    firsts = first_match_rank[first_match_rank >= 0]
    found = np.bincount(firsts[firsts < max_rank], minlength=max_rank).cumsum()
    return EvaluationResult(
        cmc=found / num_valid,
        map=float(np.nanmean(ap)),
        map_official=float(np.nanmean(ap_official)),
        num_valid_queries=num_valid,
        ap=ap,
        ap_official=ap_official,
        first_match_rank=first_match_rank,
    )


def _ids(ids: Tensor | ArrayLike, device: torch.device) -> Tensor:
    tensor = torch.as_tensor(ids)
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex()):
        raise DataError(f"pids and camids must be integers, not {tensor.dtype}")
    return tensor.to(device=device, dtype=torch.int64)


def _check(side: str, features_ND: Tensor, pids_N: Tensor, camids_N: Tensor) -> None:
    if features_ND.ndim != 2 or features_ND.is_complex():
        raise DataError(
            f"{side} features must be a real matrix of one row per image, not {features_ND.dtype} "
            f"of shape {tuple(features_ND.shape)}"
        )
    for name, ids_N in (("pids", pids_N), ("camids", camids_N)):
        if ids_N.shape != features_ND.shape[:1]:
            raise DataError(
                f"{side} {name} have shape {tuple(ids_N.shape)} for {len(features_ND)} {side} "
                "features; give one for each image"
            )
    for start in range(0, len(features_ND), GALLERY_ROWS):
        finite_B = features_ND[start : start + GALLERY_ROWS].isfinite().all(1)
        if not bool(finite_B.all()):
            row = start + int(finite_B.int().argmin())
            raise DataError(
                f"row {row} of the {side} features holds a value that isn't finite; extract "
                "the features again, in fp32 if the checkpoint's own weights are finite"
            )


def _matches(
    query_pids_Q: Tensor, query_camids_Q: Tensor, gallery_pids_G: Tensor, gallery_camids_G: Tensor
) -> tuple[Tensor, Tensor]:
    """All pairs of a query and its matches, by ascending query, then gallery index: (P,), (P,)."""
    by_pid_G = gallery_pids_G.argsort(stable=True)
    sorted_pids_G = gallery_pids_G[by_pid_G]
    first_Q = torch.searchsorted(sorted_pids_G, query_pids_Q)
    count_Q = torch.searchsorted(sorted_pids_G, query_pids_Q, right=True) - first_Q
    count_Q = count_Q.where(query_pids_Q >= 0, 0)  # an unknown identity has no match
    query_P = torch.arange(len(query_pids_Q), device=count_Q.device).repeat_interleave(count_Q)
    offset_P = torch.arange(len(query_P), device=count_Q.device)
    offset_P = offset_P - (count_Q.cumsum(0) - count_Q)[query_P]
    gallery_P = by_pid_G[first_Q[query_P] + offset_P]
    other_camera_P = query_camids_Q[query_P] != gallery_camids_G[gallery_P]
    return query_P[other_camera_P], gallery_P[other_camera_P]


@contextmanager
def _workers(device: torch.device) -> Iterator[tuple[int, _Map]]:
    """How many threads do the work, and a `map` that they share.

    On CPUs each works alone on its own queries, and torch splits no operation between
    threads, who would wait for each other after every one. Products in float32 are exactly
    that meanwhile, whatever the process allows for training (bf16 on CPUs too); autocast doesn't
    reach into threads.
    """
    if device.type != "cpu":
        yield 1, map
        return
    with _settings_lock:
        num_threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("highest")
        try:
            with ThreadPoolExecutor(num_threads) as pool:
                yield num_threads, pool.map
        finally:
            torch.set_num_threads(num_threads)
            torch.set_float32_matmul_precision(precision)


class _Gallery(NamedTuple):
    features_GD: Tensor
    pids_G: Tensor
    centre_D: Tensor  # the mean, float64
    squares_G: Tensor  # squared distances from there, float64
    copy_of_G: Tensor  # index of an image with the same features: one and the same for all copies


def _survey(each: _Map, features_GD: Tensor, pids_G: Tensor) -> _Gallery:
    """What all queries need to know of the gallery."""
    chunks = torch.split(features_GD, GALLERY_ROWS)
    sums = each(lambda chunk: sum(some.double().sum(0) for some in _cached(chunk)), chunks)
    centre_D = torch.stack(list(sums)).sum(0) / len(features_GD)
    squares_G = torch.cat(list(each(lambda chunk: _squares(chunk, centre_D), chunks)))
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


def _cached(features_ND: Tensor) -> tuple[Tensor, ...]:
    return torch.split(features_ND, _rows_in_cache(features_ND))


def _rows_in_cache(features_ND: Tensor) -> int:
    size = CACHED_SIZE if features_ND.device.type == "cpu" else CACHED_SIZE_ON_GPU
    return max(1, size // max(1, features_ND.shape[1]))


def _squares(features_ND: Tensor, centre_D: Tensor) -> Tensor:
    """Squared distances from the centre, float64 (N,)."""
    squares = [(some.double() - centre_D).square_().sum(1) for some in _cached(features_ND)]
    return torch.cat(squares)


def _centred(features_ND: Tensor, centre_D: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """`factor` times the features from the centre, rounded once.

    Distances don't change when both sides are moved, but the rounding of |q|^2 - 2 q.g + |g|^2
    shrinks with the norms: features that lie close together, far from 0, need this.
    """
    parts = [(some.double() - centre_D).mul_(factor).to(dtype) for some in _cached(features_ND)]
    return torch.cat(parts)


def _match_ranks(
    queries_BD: Tensor,
    query_pids_B: Tensor,
    gallery: _Gallery,
    pair_gallery_P: Tensor,
    first_pair_B: Tensor,
    num_matches_B: Tensor,
) -> Tensor:
    """Rank (from 0, ascending) of every match of a block of queries: int64 (B, M), rest -1."""
    device = queries_BD.device
    slots_M = torch.arange(int(num_matches_B.max()), device=device)
    present_BM = slots_M < num_matches_B[:, None]
    rows_P, slot_P = present_BM.nonzero(as_tuple=True)
    columns_P = pair_gallery_P[first_pair_B[rows_P] + slot_P]

    # A stable sort keeps the ascending gallery index among equal distances.
    match_BM = torch.full(present_BM.shape, torch.inf, dtype=torch.float64, device=device)
    match_BM[present_BM] = _direct_distance(queries_BD, rows_P, gallery.features_GD, columns_P)
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
    squares_B, squares_G = _squares(queries_BD, gallery.centre_D), gallery.squares_G
    _, exponent = math.frexp(max(float(squares_B.max()), float(squares_G.max())) ** 0.5)
    scale = math.ldexp(1.0, min(max(-exponent, -500), 500))
    squares_B, squares_G = squares_B * scale**2, squares_G * scale**2
    minus_two_RD = _centred(queries_BD, gallery.centre_D, -2 * scale, dtype)
    rows_R = torch.arange(len(queries_BD), device=queries_BD.device)  # those not given up
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
    for start in range(0, len(gallery.pids_G), step):
        chunk = slice(start, start + step)
        chunk_CD = _centred(gallery.features_GD[chunk], gallery.centre_D, scale, dtype)
        squares_C, pids_C = squares_G[chunk].to(dtype), gallery.pids_G[chunk]
        tile_RC = _tile(squares_C, minus_two_RD, chunk_CD)
        # Matches are ranked among themselves, and junk isn't ranked at all: to infinity.
        tile_RC.masked_fill_(query_pids_B[rows_R, None] == pids_C, torch.inf)
        ends_RE = cuts.ends_BE[rows_R]
        count_RE = _count(tile_RC, ends_RE, cuts.last_end_B1[rows_R])
        clear_BE[rows_R] += count_RE
        count_RE *= cuts.is_unclear_BE[rows_R]
        num_unclear_B[rows_R] += count_RE.sum(1)
        if dtype == torch.float32:
            most = DIRECT_AT_LEAST + DIRECT_SHARE * (start + len(pids_C))
            stays_R = num_unclear_B[rows_R] <= most
            given_up_B[rows_R] = ~stays_R
            count_RE *= stays_R[:, None]
        row_K, end_K = count_RE.nonzero(as_tuple=True)
        low_K, high_K = ends_RE[row_K, end_K - 1], ends_RE[row_K, end_K]
        row_P, column_P = _within(tile_RC, row_K, low_K, high_K)
        _count_directly(
            *(nearer_BN, queries_BD, rows_R[row_P], gallery, column_P + start),
            *(match_BM, index_BM),
        )
        if bool(given_up_B[rows_R].any()):
            rows_R, minus_two_RD = rows_R[stays_R], minus_two_RD[stays_R]
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

    A sum of n products in any order is off by at most n roundings of |q| |g| (Higham 2002, Accuracy
    and Stability of Numerical Algorithms, sec. 3.1); 2.1 for twice that holds up to n = 500,000.
    The factor 16 stands for rounding the operands, |g|^2, its addition and the bands' ends. Direct
    sums, squares and centring are in float64.
    """
    rounding = torch.finfo(dtype).eps / 2
    num_added = min(num_channels, CHANNELS) + -(-num_channels // CHANNELS)
    most_B = (norm_B + radius).square()
    return (
        rounding * (2.1 * num_added * norm_B * radius + 16 * most_B)
        + 2.0**-53 * (num_channels + 64) * most_B
        + UNDERFLOW
    )


def _tile(squares_C: Tensor, minus_two_RD: Tensor, chunk_CD: Tensor) -> Tensor:
    """|g|^2 - 2 q.g, added up by blocks of channels: (R, C)."""
    tile_RC = squares_C.expand(len(minus_two_RD), -1).contiguous()
    for start in range(0, chunk_CD.shape[1], CHANNELS):
        channels = slice(start, start + CHANNELS)
        tile_RC.addmm_(minus_two_RD[:, channels], chunk_CD[:, channels].T)
    return tile_RC


def _count(tile_RC: Tensor, ends_RE: Tensor, last_end_R1: Tensor) -> Tensor:
    """How many elements of a row lie before each end, but not before the end before: (R, E)."""
    if tile_RC.device.type == "cpu":
        # NumPy sorts faster than anybody looks up all elements among the ends. Nothing
        # beyond the last end counts, and equal numbers are sorted at once.
        sorted_RC = torch.minimum(tile_RC, last_end_R1)
        sorted_RC.numpy().sort(axis=1)
        before_RE = torch.searchsorted(sorted_RC, ends_RE)
        return before_RE.diff(dim=1, prepend=torch.zeros_like(before_RE[:, :1]))
    return _count_by_bucket(tile_RC, ends_RE)


def _count_by_bucket(tile_RC: Tensor, ends_RE: Tensor) -> Tensor:
    num_rows, num_buckets = len(ends_RE), ends_RE.shape[1] + 1
    bucket_RC = torch.searchsorted(ends_RE, tile_RC, right=True)
    bucket_RC += torch.arange(num_rows, device=bucket_RC.device)[:, None] * num_buckets
    counts = torch.bincount(bucket_RC.flatten(), minlength=num_rows * num_buckets)
    return counts.view(num_rows, num_buckets)[:, :-1]


def _within(tile_RC: Tensor, row_K: Tensor, low_K: Tensor, high_K: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of all elements of intervals low <= x < high of rows: (P,), (P,)."""
    step = max(1, TABLE_SIZE // tile_RC.shape[1])
    rows, columns = [], []
    for row_S, low_S, high_S in zip(
        *(torch.split(some_K, step) for some_K in (row_K, low_K, high_K)), strict=True
    ):
        values_SC = tile_RC[row_S]
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
    distance_K = _direct_distance(
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


def _direct_distance(
    queries_BD: Tensor, rows_P: Tensor, gallery_GD: Tensor, columns_P: Tensor
) -> Tensor:
    """Squared distance of each pair as a sum of squared differences: float64 (P,).

    The channels are added by halving, in elementwise operations, so that the order of additions is
    the same however many pairs there are and on any device: copies tie to the last bit.
    `Tensor.sum` doesn't promise that.
    """
    if len(rows_P) == 0 or queries_BD.shape[1] == 0:
        return torch.zeros(len(rows_P), dtype=torch.float64, device=queries_BD.device)
    sums = []
    step = _rows_in_cache(queries_BD)
    for rows_S, columns_S in zip(
        torch.split(rows_P, step), torch.split(columns_P, step), strict=True
    ):
        # In place, as fresh memory would cost more than the arithmetic.
        terms_SD = queries_BD[rows_S].double().sub_(gallery_GD[columns_S].double()).square_()
        width = terms_SD.shape[1]
        while width > 1:
            half = width // 2
            terms_SD[:, :half] += terms_SD[:, half : 2 * half]
            if width % 2:
                terms_SD[:, 0] += terms_SD[:, width - 1]
            width = half
        sums.append(terms_SD[:, 0].clone())
    return torch.cat(sums)


def _average_precision(
    ranks_BM: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average precision of each query by the rectangle and the trapezoid rule: (B,), (B,)."""
    present_BM = ranks_BM >= 0
    hits_M = np.arange(ranks_BM.shape[1])
    precision_BM = (hits_M + 1) / np.where(present_BM, ranks_BM + 1, 1)
    # Nothing lies before rank 0: there the precision counts as 1.
    before_BM = np.where(ranks_BM > 0, hits_M / np.maximum(ranks_BM, 1), 1.0)

    def mean(values_BM: NDArray[np.float64]) -> NDArray[np.float64]:
        # Running sums add from left to right, so that the padding doesn't change the last digit.
        totals_BM = np.where(present_BM, values_BM, 0.0).cumsum(axis=1)
        means_B: NDArray[np.float64] = totals_BM[:, -1] / present_BM.sum(axis=1)
        return means_B

    return mean(precision_BM), mean((precision_BM + before_BM) / 2)
