"""Exact k-nearest neighbours of every sample, without an N x N matrix.

1. Many copies are set aside first, as they would fill every list (`distinct_rows`).
2. Candidates: on CPUs, row blocks meet in pairs and keep running lists (`cluster.products`); a GPU
   searches its rows among all others (`cluster.search_on_device`).
3. Candidates are measured again exactly and ordered by (distance, index). A certificate shows
   that rounding can't have hidden a nearer sample; rows without it are searched again
   (`cluster.refine`).
4. Copies come back, each as near as its like.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from cluster.blocks import row_blocks, tournament
from cluster.copies import Longs, copy_rows, distinct_rows
from cluster.products import SLACK, Floats, Ints, Precision, meet, meet_itself, no_candidates
from cluster.refine import Groups, Neighbours, Search, fixed_point_scale, refine
from cluster.runner import Handle, Runner
from cluster.search_on_device import ROWS_ON_DEVICE, search_rows

MANY_COPIES = 0.01  # of the rows; a few cost less in place than a copy of the features


def nearest_neighbours(
    runner: Runner,
    features_ND: Floats,
    k: int,
    num_blocks: int,
    precision: Precision = "fp32",
    features: Handle | None = None,
    first_copy_N: Longs | None = None,
    scale: float | None = None,
    by_cuvs: bool = False,
) -> Handle:
    """Handle of the `Neighbours`: the `min(k, N)` nearest samples by Euclidean distance.

    `features_ND` is float32, finite, with norms up to 1e15; `features` is a handle of it,
    `first_copy_N` its `distinct_rows` and `scale` its `fixed_point_scale`, if they are there
    already. `by_cuvs` is for features of length 1, and a GPU that has cuVS. Memory: O(N k), and a
    few tiles for each task.
    """
    first_copy_N = distinct_rows(features_ND) if first_copy_N is None else first_copy_N
    is_first = first_copy_N == np.arange(len(features_ND))
    has_copies = bool((~is_first).sum() > MANY_COPIES * len(features_ND))
    if has_copies:
        features_ND, features = features_ND[is_first], None
    num_distinct = len(features_ND)
    scale = fixed_point_scale(features_ND) if scale is None else scale
    found = search_all(
        runner,
        runner.share(features_ND) if features is None else features,
        Search(min(k, num_distinct), scale, precision, by_cuvs=by_cuvs),
        [0, num_distinct],
        num_blocks,
    )
    if not has_copies:
        return found
    copies = runner.share(np.cumsum(is_first)[first_copy_N].astype(np.int32) - 1)
    parts = [
        runner.submit("neighbours: copies", with_copies, found, copies, k, start, stop)
        for start, stop in row_blocks(len(is_first), num_blocks)
    ]
    return runner.submit("neighbours: join", join, *parts)


def nearest_in_groups(
    runner: Runner,
    features: Handle,
    scale: float,
    groups: Groups,
    k: int,
    num_blocks: int,
    precision: Precision = "fp32",
) -> Handle:
    """The same within the samples' own groups (the sample itself first), or among all others."""
    num_samples = len(groups.of_N)
    edges = [0, *(np.flatnonzero(np.diff(groups.of_N)) + 1).tolist(), num_samples]
    search = Search(min(k, num_samples), scale, precision, groups)
    return search_all(runner, features, search, edges, num_blocks)


def search_all(
    runner: Runner, features: Handle, search: Search, edges: list[int], num_blocks: int
) -> Handle:
    """Neighbours of all rows, on the runner's device or by its CPUs; groups lie between `edges`."""
    num_samples = edges[-1]
    if runner.device != "cpu":
        blocks = blocks_between(edges, ROWS_ON_DEVICE)
        parts = runner.on_device("neighbours: search", search_rows, blocks, features, search)
        if parts is not None:
            return runner.share(join(*parts))
    blocks = blocks_between(edges, -(-num_samples // num_blocks))
    return search_on_cpus(runner, features, search, blocks)


def blocks_between(edges: list[int], most_rows: int) -> list[tuple[int, int]]:
    """Row blocks of at most so many rows, none across an edge."""
    return [
        (first + start, first + stop)
        for first, last in pairwise(edges)
        for start, stop in row_blocks(last - first, -(-(last - first) // most_rows))
    ]


def search_on_cpus(
    runner: Runner, features: Handle, search: Search, blocks: Sequence[tuple[int, int]]
) -> Handle:
    """Blocks meet in pairs, round by round, and each is refined once it has met all it can."""
    num_samples = blocks[-1][1]
    # A list of N has a place too many, which shows that nobody was turned away.
    num_near = min(search.k + SLACK[search.precision], num_samples)
    options = (features, search.precision)
    lists: list[Handle] = [
        runner.submit("neighbours: products", meet_itself, *options, block, num_near)
        if search.groups.same
        else no_candidates(block, num_near)
        for block in blocks
    ]
    for pairs in tournament(len(blocks)):
        for a, b in pairs:
            if search.meet(blocks[a][0], blocks[b][0]):
                lists[a], lists[b] = runner.submit(
                    "neighbours: products", meet, *options, lists[a], lists[b], num_results=2
                )
    shared = runner.share(search)
    parts = [runner.submit("neighbours: refine", refine, features, shared, own) for own in lists]
    return runner.submit("neighbours: join", join, *parts)


def join(*parts: Neighbours) -> Neighbours:
    """Neighbours of all rows from those of the row blocks, in order."""
    return Neighbours(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def with_copies(
    distinct: Neighbours, copy_of_N: Ints, k: int, row_start: int, row_stop: int
) -> Neighbours:
    """Neighbours of rows row_start..row_stop from those of the distinct samples.

    `copy_of_N`: which distinct sample each sample is. The k nearest distinct samples and their
    copies are more than enough: whoever is left out is behind k samples.
    """
    k = min(k, len(copy_of_N))
    by_distinct = np.argsort(copy_of_N, kind="stable").astype(np.int32)
    edges = np.searchsorted(copy_of_N[by_distinct], np.arange(len(distinct.indices_NK) + 1))
    indices_RK, sq_RK = copy_rows(
        *(distinct.indices_NK, distinct.sq_distances_NK, copy_of_N, by_distinct, edges, k),
        *(row_start, row_stop),
    )
    return Neighbours(indices_RK, sq_RK, distinct.max_sq_distance_N[copy_of_N[row_start:row_stop]])
