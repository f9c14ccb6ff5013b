"""What each query finds: rank lists, and how far the scores can be relied on.

Shapes: Q queries, G gallery images, D channels.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from daal.config import Config, InputConfig
from daal.data.records import JUNK_PID
from daal.errors import DataError
from daal.evaluation import EvaluationResult, evaluate
from pipelines.report.images import Photo, columns, features, photo, thumbs
from pipelines.run.folder import RunFolder
from pipelines.run.stages import PRETRAIN, Stage
from pipelines.search.nearest import nearest

MAX_QUERIES = 1000  # scored again, one by one
NUM_WORST, NUM_TYPICAL = 5, 4
DEPTH = 10  # ranks to show
MAX_JUNK = 3  # images shown among them that don't count
RESAMPLES = 1000


@dataclass(frozen=True)
class RankList:
    """A query, and the gallery from its nearest image on."""

    query: Photo
    found: list[Photo]
    ap: float
    first: int  # rank of the first right image, from 1
    num_hidden: int  # junk images beyond those shown


@dataclass(frozen=True)
class Retrieval:
    """`intervals`: of map, rank1, and their gains over direct transfer; 95 %, as fractions.

    Without images there are no lists, and a reason instead.
    """

    worst: list[RankList]
    typical: list[RankList]
    intervals: dict[str, tuple[float, float]]
    num_sampled: int
    num_queries: int
    num_people: int
    hopeless: float  # share of queries without a right image among the first ten
    reason: str = ""


class Shown(NamedTuple):
    """What of a query's ranking is shown: (row, kind, rank from 1 or 0 for junk) of each image."""

    query: int  # its row
    images: list[tuple[int, str, int]]
    first: int
    hidden: int


def retrieval(run: RunFolder, config: Config, model: Stage) -> Retrieval:
    """The queries of the target by the features of a model.

    Raises:
        DataError: there is no query, no gallery, or the features aren't there.
    """
    about = columns(run, model.file("features.parquet"), ("split", "pid", "camid", "path"))
    all_queries = np.flatnonzero(about["split"] == "query")
    gallery_G = np.flatnonzero(about["split"] == "gallery")
    if len(all_queries) == 0 or len(gallery_G) == 0:
        raise DataError("The target has no query and gallery images, so nothing can be looked for.")
    rng = np.random.default_rng(config.seed)
    chosen = rng.permutation(len(all_queries))[:MAX_QUERIES]
    queries_Q = np.sort(all_queries[chosen])
    pids_Q = about["pid"][queries_Q]
    queries_QD, gallery_GD = _sides(run, model, queries_Q, gallery_G)
    scored = _score(about, queries_Q, gallery_G, queries_QD, gallery_GD)
    valid_Q = scored.first_match_rank >= 0
    if not valid_Q.any():
        raise DataError("No query has an image of the same person by another camera.")
    worst, typical = choose_queries(scored.ap, pids_Q)
    shown = {}
    for query in (*worst, *typical):
        ranked_G = gallery_G[nearest(queries_QD[query], gallery_GD, len(gallery_G))[0]]
        shown[query] = _first_ones(about, int(queries_Q[query]), ranked_G)
    samples = {"map": scored.ap, "rank1": (scored.first_match_rank == 0).astype(float)}
    if model != PRETRAIN and run.exists(PRETRAIN.file("features.parquet")):
        del queries_QD, gallery_GD  # two stages' at once may be too much
        sides = _sides(run, PRETRAIN, queries_Q, gallery_G)
        before = _score(about, queries_Q, gallery_G, *sides)
        samples["map_gain"] = scored.ap - before.ap
        samples["rank1_gain"] = samples["rank1"] - (before.first_match_rank == 0)
    intervals = {
        name: interval(values_Q[valid_Q], pids_Q[valid_Q], config.seed)
        for name, values_Q in samples.items()
    }
    lists, reason = [], ""
    try:
        lists = _rank_lists(run, config.input, about, shown, scored.ap)
    except DataError as error:
        reason = str(error)
    return Retrieval(
        worst=lists[: len(worst)],
        typical=lists[len(worst) :],
        intervals=intervals,
        num_sampled=int(valid_Q.sum()),
        num_queries=len(all_queries),
        num_people=len(np.unique(pids_Q[valid_Q])),
        hopeless=float((scored.first_match_rank[valid_Q] >= DEPTH).mean()),
        reason=reason,
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


def _sides(
    run: RunFolder, model: Stage, queries_Q: NDArray[np.intp], gallery_G: NDArray[np.intp]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features of both sides, read at once: (Q, D), (G, D)."""
    rows = np.union1d(queries_Q, gallery_G)
    features_ND = features(run, model, rows)
    return (
        features_ND[np.searchsorted(rows, queries_Q)],
        features_ND[np.searchsorted(rows, gallery_G)],
    )


def _score(
    about: dict[str, NDArray[Any]],
    queries_Q: NDArray[np.intp],
    gallery_G: NDArray[np.intp],
    queries_QD: NDArray[np.float32],
    gallery_GD: NDArray[np.float32],
) -> EvaluationResult:
    pids, camids = about["pid"], about["camid"]
    return evaluate(
        *(queries_QD, pids[queries_Q], camids[queries_Q]),
        *(gallery_GD, pids[gallery_G], camids[gallery_G]),
    )


def _rank_lists(
    run: RunFolder,
    size: InputConfig,
    about: dict[str, NDArray[Any]],
    shown: dict[int, Shown],
    ap_Q: NDArray[np.floating],
) -> list[RankList]:
    found_rows = [row for some in shown.values() for row, _, _ in some.images]
    wanted = [*(some.query for some in shown.values()), *found_rows]
    pixels = dict(zip(wanted, thumbs(run, "target", wanted, size), strict=True))
    lists = []
    for query, some in shown.items():
        found = [
            photo(
                pixels[row],
                f"rank {place}: {kind}" if place else "junk: the same person by the same camera",
                caption={"right": f"{place} ✓", "wrong": f"{place} ✗", "junk": "junk"}[kind],
                kind=kind,
                title=str(about["path"][row]),
            )
            for row, kind, place in some.images
        ]
        title = str(about["path"][some.query])
        queried = photo(pixels[some.query], "the query", caption="query", title=title)
        lists.append(RankList(queried, found, float(ap_Q[query]), some.first, some.hidden))
    return lists


def _first_ones(about: dict[str, NDArray[Any]], query: int, ranked_G: NDArray[np.intp]) -> Shown:
    pids_G, camids_G = about["pid"][ranked_G], about["camid"][ranked_G]
    same_G = pids_G == about["pid"][query]
    junk_G = (same_G & (camids_G == about["camid"][query])) | (pids_G == JUNK_PID)
    rank_G = (~junk_G).cumsum()
    first = int(rank_G[np.flatnonzero(same_G & ~junk_G)[0]])
    shown: list[tuple[int, str, int]] = []
    num_junk = 0
    for row, same, junk, place in zip(ranked_G, same_G, junk_G, rank_G, strict=True):
        if not junk:
            shown.append((int(row), "right" if same else "wrong", int(place)))
            if place == DEPTH:
                break
            continue
        num_junk += 1
        if num_junk <= MAX_JUNK:
            shown.append((int(row), "junk", 0))
    return Shown(query, shown, first, max(0, num_junk - MAX_JUNK))
