"""What each query finds: rank lists, and how far the scores can be relied on.

Shapes: Q queries, G gallery images, D channels.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daal.config import Config
from daal.data.records import JUNK_PID
from daal.errors import DataError
from daal.evaluation import EvaluationResult, evaluate
from pipelines.report.images import Photo, columns, feature_files, features, photo, thumbs
from pipelines.run.folder import RunFolder
from pipelines.run.stages import PRETRAIN, Stage
from pipelines.search.nearest import nearest

MAX_QUERIES = 1000  # scored again, one by one
NUM_WORST, NUM_TYPICAL = 5, 4
DEPTH = 10  # ranks to show
RESAMPLES = 1000


@dataclass(frozen=True)
class RankList:
    """A query, and the gallery from its nearest image on, without images that don't count."""

    query: Photo
    found: list[Photo]
    ap: float
    first: int  # rank of the first right image, from 1


@dataclass(frozen=True)
class Retrieval:
    """`intervals`: of map, rank1, and their gains over direct transfer; 95 %, as fractions."""

    worst: list[RankList]
    typical: list[RankList]
    intervals: dict[str, tuple[float, float]]
    num_sampled: int
    num_queries: int
    num_people: int
    hopeless: float  # share of queries without a right image among the first ten


def retrieval(run: RunFolder, config: Config, model: Stage) -> Retrieval:
    """The queries of the target by the features of a model.

    Raises:
        DataError: there is no query, no gallery, or the features or images aren't there.
    """
    about = columns(run, feature_files(run, model), ("split", "pid", "camid", "path"))
    all_queries = np.flatnonzero(about["split"] == "query")
    gallery_G = np.flatnonzero(about["split"] == "gallery")
    if len(all_queries) == 0 or len(gallery_G) == 0:
        raise DataError("The target has no query and gallery images, so nothing can be looked for.")
    chosen = np.random.default_rng(config.seed).permutation(len(all_queries))[:MAX_QUERIES]
    queries_Q = np.sort(all_queries[chosen])

    def score(
        model: Stage,
    ) -> tuple[EvaluationResult, NDArray[np.float32], NDArray[np.float32]]:
        queries_QD = features(run, model, queries_Q)
        gallery_GD = features(run, model, gallery_G)
        pids_N, camids_N = about["pid"], about["camid"]
        scored = evaluate(
            queries_QD, pids_N[queries_Q], camids_N[queries_Q],
            gallery_GD, pids_N[gallery_G], camids_N[gallery_G],
        )  # fmt: skip
        return scored, queries_QD, gallery_GD

    scored, queries_QD, gallery_GD = score(model)
    valid_Q = np.isfinite(scored.ap)
    if not valid_Q.any():
        raise DataError("No query has an image of the same person by another camera.")
    pids_Q = about["pid"][queries_Q]
    worst, typical = choose_queries(scored.ap, pids_Q)
    shown = {query: ranked(about, int(queries_Q[query]), queries_QD[query], gallery_G, gallery_GD)
             for query in (*worst, *typical)}  # fmt: skip

    samples = {"map": scored.ap, "rank1": (scored.first_match_rank == 0).astype(float)}
    if model != PRETRAIN:
        del queries_QD, gallery_GD  # two models' at once may be too much
        with suppress(DataError):  # they may have been deleted
            before, *_ = score(PRETRAIN)
            samples["map_gain"] = scored.ap - before.ap
            samples["rank1_gain"] = samples["rank1"] - (before.first_match_rank == 0)
    lists = _rank_lists(run, config, about, queries_Q, shown, scored)
    return Retrieval(
        worst=lists[: len(worst)],
        typical=lists[len(worst) :],
        intervals={
            name: interval(values_Q[valid_Q], pids_Q[valid_Q], config.seed)
            for name, values_Q in samples.items()
        },
        num_sampled=int(valid_Q.sum()),
        num_queries=len(all_queries),
        num_people=len(np.unique(pids_Q[valid_Q])),
        hopeless=float((scored.first_match_rank[valid_Q] >= DEPTH).mean()),
    )


def interval(
    values_Q: NDArray[np.floating], pids_Q: NDArray[np.integer], seed: int
) -> tuple[float, float]:
    """Where the mean would be with other people: 95 % bootstrap interval.

    People are drawn with replacement, each with all of their queries, since those resemble each
    other (percentile bootstrap over clusters, Efron and Tibshirani 1993).
    """
    _, person_Q = np.unique(pids_Q, return_inverse=True)
    num_people = int(person_Q.max()) + 1
    sums_P = np.bincount(person_Q, values_Q)
    counts_P = np.bincount(person_Q)
    rng = np.random.default_rng(seed)
    drawn_RP = rng.multinomial(num_people, np.full(num_people, 1 / num_people), RESAMPLES)
    means_R = drawn_RP @ sums_P / (drawn_RP @ counts_P)
    low, high = np.percentile(means_R, [2.5, 97.5])
    return float(low), float(high)


def choose_queries(
    ap_Q: NDArray[np.floating], pids_Q: NDArray[np.integer]
) -> tuple[list[int], list[int]]:
    """Indices of the worst queries, one a person, and of some from the middle; NaN is left out."""
    order = [int(q) for q in np.argsort(ap_Q, kind="stable") if np.isfinite(ap_Q[q])]
    worst: list[int] = []
    for query in order:
        if len(worst) < NUM_WORST and pids_Q[query] not in pids_Q[worst]:
            worst.append(query)
    left = [query for query in order if query not in worst]
    places = np.linspace(0.35, 0.75, NUM_TYPICAL) * max(len(left) - 1, 0)
    typical = dict.fromkeys(left[round(place)] for place in places if left)
    return worst, list(typical)


def ranked(
    about: dict[str, NDArray[Any]],
    query: int,
    query_D: NDArray[np.float32],
    gallery_G: NDArray[np.integer],
    gallery_GD: NDArray[np.float32],
) -> NDArray[np.integer]:
    """Rows of the first images that count for a query (a row)."""
    order = gallery_G[nearest(query_D, gallery_GD, len(gallery_GD))[0]]
    pids, camids = about["pid"][order], about["camid"][order]
    by_own_camera = (pids == about["pid"][query]) & (camids == about["camid"][query])
    return order[~by_own_camera & (pids != JUNK_PID)][:DEPTH]


def _rank_lists(
    run: RunFolder,
    config: Config,
    about: dict[str, NDArray[Any]],
    queries_Q: NDArray[np.integer],
    shown: dict[int, NDArray[np.integer]],
    scored: EvaluationResult,
) -> list[RankList]:
    rows = np.unique([row for query, found in shown.items() for row in (queries_Q[query], *found)])
    pixels = dict(zip(rows.tolist(), thumbs(run, "target", rows, config.input), strict=True))

    def shown_as(row: int, alt: str, caption: str, kind: str = "") -> Photo:
        return photo(pixels[row], alt, caption=caption, kind=kind, title=str(about["path"][row]))

    lists = []
    for query, found in shown.items():
        own_row = int(queries_Q[query])
        right = about["pid"][found] == about["pid"][own_row]
        photos = [
            shown_as(row, f"rank {place}: right", f"{place} ✓", "right")
            if is_right
            else shown_as(row, f"rank {place}: wrong", f"{place} ✗", "wrong")
            for place, (row, is_right) in enumerate(zip(found.tolist(), right, strict=True), 1)
        ]
        first = int(scored.first_match_rank[query]) + 1
        asked = shown_as(own_row, "the query", "query")
        lists.append(RankList(asked, photos, float(scored.ap[query]), first))
    return lists
