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

How it is computed: only the ranks of matches matter, so no row of distances is ever
sorted or kept. The distances of the matches cut the real line into intervals, and counting the
non-matches that fall into each gives the ranks. Memory is one tile of distances whatever Q and G.

The ranking is that of the distances computed in float64 as a sum of squared differences,
whatever the device, the number of threads and the size of the blocks. The tile comes from
a matrix product, whose rounding depends on all of these; so non-matches that come closer
to a match than its error bound are measured again, directly. Products are in float64 because
this bound is then so small (1e-12 for unit features) that this touches exact copies and little
else, and because autocast, TF32 and the like leave float64 alone.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from daal.errors import DataError
from daal.records import JUNK_PID

QUERY_ROWS = 1024
GALLERY_ROWS = 8192
TABLE_SIZE = 2**23  # numbers in a table of matches: 64 MB in float64
DIRECT_SIZE = 2**18  # numbers in a batch of direct distances: 2 MB stay in a processor's cache


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
        centre_D, radius = _centre(gallery_GD)
        first_pair_Q = num_matches_Q.cumsum(0) - num_matches_Q
        most = int(num_matches_Q.max())
        rows = max(1, min(QUERY_ROWS, TABLE_SIZE // (2 * most + 1)))
        for block_B in torch.split(valid_V, rows):
            ranks_BM = _match_ranks(
                queries_QD[block_B],
                query_pids_Q[block_B],
                gallery_GD,
                gallery_pids_G,
                pair_gallery_P,
                first_pair_Q[block_B],
                num_matches_Q[block_B],
                centre_D,
                radius,
            ).numpy(force=True)
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


def _centre(gallery_GD: Tensor) -> tuple[Tensor, float]:
    """The gallery's mean and its largest distance from there, in float64.

    Distances don't change when both sides are moved, but the rounding of |q|^2 - 2 q.g + |g|^2
    shrinks with the norms: features that all lie close together, far from 0, need this.
    """
    chunks = torch.split(gallery_GD, GALLERY_ROWS)
    total_D = torch.stack([chunk.double().sum(0) for chunk in chunks]).sum(0)
    centre_D = total_D / len(gallery_GD)
    radii = [(chunk.double() - centre_D).square().sum(1).max() for chunk in chunks]
    return centre_D, float(torch.stack(radii).max()) ** 0.5


def _match_ranks(
    queries_BD: Tensor,
    query_pids_B: Tensor,
    gallery_GD: Tensor,
    gallery_pids_G: Tensor,
    pair_gallery_P: Tensor,
    first_pair_B: Tensor,
    num_matches_B: Tensor,
    centre_D: Tensor,
    radius: float,
) -> Tensor:
    """Rank (from 0, ascending) of every match of a block of queries: int64 (B, M), rest -1."""
    device = queries_BD.device
    slots_M = torch.arange(int(num_matches_B.max()), device=device)
    present_BM = slots_M < num_matches_B[:, None]
    rows_P, slot_P = present_BM.nonzero(as_tuple=True)
    columns_P = pair_gallery_P[first_pair_B[rows_P] + slot_P]

    # A stable sort keeps the ascending gallery index among equal distances.
    match_BM = torch.full(present_BM.shape, torch.inf, dtype=torch.float64, device=device)
    match_BM[present_BM] = _direct_distance(queries_BD, rows_P, gallery_GD, columns_P)
    match_BM, order_BM = match_BM.sort(dim=1, stable=True)
    index_BM = torch.zeros_like(order_BM)
    index_BM[present_BM] = columns_P
    index_BM = index_BM.gather(1, order_BM)

    # Around each match lies a band in which the matrix product can't tell nearer from
    # farther. The two ends of all bands, sorted, cut the line into 2M + 1 buckets.
    centred_BD = queries_BD.double() - centre_D
    squares_B = centred_BD.square().sum(1)
    # Each of the three terms, and the direct sum, is off by at most D roundings of a number that is
    # no larger than (|q| + |g|)^2; 32 more stand for centring and the last additions.
    roundings = 4 * queries_BD.shape[1] + 32
    band_B = roundings * 2.0**-53 * (squares_B.sqrt() + radius).square()
    band_B = band_B + torch.finfo(torch.float64).tiny  # never empty: copies of the query need it
    # |q|^2 is the same for a whole row: it is taken off the matches instead of added to the tile.
    threshold_BM = match_BM - squares_B[:, None]
    ends_BE, end_order_BE = torch.cat(
        [threshold_BM - band_B[:, None], threshold_BM + band_B[:, None]], dim=1
    ).sort(dim=1)
    closed_BE = (end_order_BE >= len(slots_M)).long().cumsum(1)
    zero_B1 = torch.zeros_like(closed_BE[:, :1])
    # In bucket e, matches 0..beaten-1 are certainly nearer than the element.
    beaten_BE = torch.cat([zero_B1, closed_BE], dim=1)
    opened_BE = torch.arange(beaten_BE.shape[1], device=device) - beaten_BE
    unclear_BE = opened_BE != beaten_BE

    # nearer[b, n]: non-matches behind exactly the first n matches of query b.
    num_buckets = beaten_BE.shape[1]
    first_bucket_B1 = torch.arange(len(queries_BD), device=device)[:, None] * num_buckets
    clear_BE = torch.zeros_like(beaten_BE)
    nearer_BN = torch.zeros(len(queries_BD), len(slots_M) + 1, dtype=torch.int64, device=device)
    for start in range(0, len(gallery_GD), GALLERY_ROWS):
        chunk_CD = gallery_GD[start : start + GALLERY_ROWS].double() - centre_D
        tile_BC = torch.addmm(chunk_CD.square().sum(1), centred_BD, chunk_CD.T, alpha=-2.0)
        # Matches are ranked among themselves below, and junk isn't ranked at all: to infinity.
        same_pid_BC = query_pids_B[:, None] == gallery_pids_G[start : start + GALLERY_ROWS]
        tile_BC.masked_fill_(same_pid_BC, torch.inf)
        bucket_BC = torch.searchsorted(ends_BE, tile_BC, right=True)
        count_BE = torch.bincount(
            (bucket_BC + first_bucket_B1).flatten(), minlength=clear_BE.numel()
        ).view_as(clear_BE)
        clear_BE += count_BE.where(~unclear_BE, 0)

        rows_R = (count_BE.where(unclear_BE, 0).sum(1) > 0).nonzero().squeeze(1)
        if len(rows_R):
            unclear_RC = unclear_BE[rows_R].gather(1, bucket_BC[rows_R])
            near_row_P, column_P = unclear_RC.nonzero(as_tuple=True)
            _count_directly(
                nearer_BN,
                queries_BD,
                rows_R[near_row_P],
                gallery_GD,
                column_P + start,
                match_BM,
                index_BM,
            )
    nearer_BN.scatter_add_(1, beaten_BE, clear_BE)
    # A non-match behind the first n matches is in front of all later ones.
    ranks_BM = slots_M + nearer_BN.cumsum(1)[:, :-1]
    return ranks_BM.where(present_BM, -1)


def _count_directly(
    nearer_BN: Tensor,
    queries_BD: Tensor,
    rows_P: Tensor,
    gallery_GD: Tensor,
    columns_P: Tensor,
    match_BM: Tensor,
    index_BM: Tensor,
) -> None:
    """Add to `nearer_BN` the non-matches (pairs of row and column) that came too close to call."""
    # Features that have collapsed into few values make each pair too close to call; so the distance
    # to a row and to its copies is taken once. Which copy stands for the others doesn't matter.
    columns_U, column_of_P = torch.unique(columns_P, return_inverse=True)
    _, copy_of_U = torch.unique(gallery_GD[columns_U], dim=0, return_inverse=True)
    copy_U = torch.zeros_like(columns_U).scatter_(0, copy_of_U, columns_U)
    pairs_K, pair_of_P = torch.unique(
        rows_P * len(columns_U) + copy_of_U[column_of_P], return_inverse=True
    )
    distance_K = _direct_distance(
        queries_BD, pairs_K // len(columns_U), gallery_GD, copy_U[pairs_K % len(columns_U)]
    )
    step = max(1, TABLE_SIZE // match_BM.shape[1])
    for rows_S, columns_S, pair_of_S in zip(
        torch.split(rows_P, step),
        torch.split(columns_P, step),
        torch.split(pair_of_P, step),
        strict=True,
    ):
        distance_S1 = distance_K[pair_of_S][:, None]
        match_SM, index_SM = match_BM[rows_S], index_BM[rows_S]
        tied_SM = (match_SM == distance_S1) & (index_SM < columns_S[:, None])
        behind_S = ((match_SM < distance_S1) | tied_SM).sum(1)
        cell_S = rows_S * nearer_BN.shape[1] + behind_S
        nearer_BN += torch.bincount(cell_S, minlength=nearer_BN.numel()).view_as(nearer_BN)


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
    step = max(1, DIRECT_SIZE // queries_BD.shape[1])
    for rows_S, columns_S in zip(
        torch.split(rows_P, step), torch.split(columns_P, step), strict=True
    ):
        terms_SD = (queries_BD[rows_S].double() - gallery_GD[columns_S].double()).square_()
        while (width := terms_SD.shape[1]) > 1:
            half = width // 2
            folded_SD = terms_SD[:, :half] + terms_SD[:, half : 2 * half]
            if width % 2:
                folded_SD[:, 0] += terms_SD[:, -1]
            terms_SD = folded_SD
        sums.append(terms_SD[:, 0])
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
