"""CMC and mean average precision under the Market-1501 protocol.

Shapes: Q queries, G gallery images, D feature channels, B queries of a block, M matches
of a query (padded to the most of any query in the block), P pairs of a query and a match.

The protocol (Zheng et al. 2015, "Scalable Person Re-identification: A Benchmark"):

- gallery images of pid -1 (junk boxes) are dropped before ranking;
- distractors (pid 0 in Market-1501) are ranked like any image, and wrong because no query has
  their pid; MSMT17's pid 0 is a person like others; unknown identities (negative) match nothing;
- gallery images with the query's pid and camid are left out of that query's ranking, unless its
  camera isn't known (below 0);
- a query with no match left is skipped: no figure counts it;
- the gallery is ranked by ascending squared Euclidean distance of the features as given (normalise
  them first, if they should be), equal distances by ascending gallery index.

Average precision has two readings in the literature, and both are returned. The rectangle
rule is the mean precision at the matches, and what torchreid, fast-reid and scikit-learn
compute; the trapezoid rule of Oxford-5k and of Market-1501's own MATLAB code averages the
precision at a match with that just before it, and is lower.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from daal.data.records import JUNK_PID
from daal.errors import DataError
from daal.match_ranks import match_ranks

CHECKED_ROWS = 1024  # of features at a time


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
    ap = np.full(len(queries_QD), np.nan)
    ap_official = np.full(len(queries_QD), np.nan)
    first_match_rank = np.full(len(queries_QD), -1, dtype=np.int64)
    for block_B, ranks_BM in match_ranks(
        queries_QD, query_pids_Q, gallery_GD, gallery_pids_G, pair_gallery_P, num_matches_Q
    ):
        first_match_rank[block_B] = ranks_BM[:, 0]
        ap[block_B], ap_official[block_B] = _average_precision(ranks_BM)

    firsts = first_match_rank[first_match_rank >= 0]
    found = np.bincount(firsts[firsts < max_rank], minlength=max_rank).cumsum()
    return EvaluationResult(
        cmc=found / len(firsts) if len(firsts) else np.full(max_rank, np.nan),
        map=float(np.nanmean(ap)) if len(firsts) else np.nan,
        map_official=float(np.nanmean(ap_official)) if len(firsts) else np.nan,
        num_valid_queries=len(firsts),
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
    for start in range(0, len(features_ND), CHECKED_ROWS):
        finite_B = features_ND[start : start + CHECKED_ROWS].isfinite().all(1)
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
    camids_P = query_camids_Q[query_P]
    counts_P = (camids_P != gallery_camids_G[gallery_P]) | (camids_P < 0)
    return query_P[counts_P], gallery_P[counts_P]


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
