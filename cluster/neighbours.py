"""Exact k-nearest neighbours of every sample, without an N x N matrix.

1. Many copies are set aside first, as they would fill every list (`cluster.copies`).
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

from cluster.arrays import Ints, Longs
from cluster.blocks import row_blocks, tournament
from cluster.copies import copy_rows
from cluster.products import meet, meet_itself, no_candidates
from cluster.refine import Neighbours, Search, refine
from cluster.run import Handle, Runner, run_one
from cluster.search_on_device import ROWS_ON_DEVICE, search_rows

MANY_COPIES = 0.01  # of the rows; a few cost less in place than a copy of the features


def nearest_neighbours(
    runner: Runner,
    features: Handle,
    search: Search,
    num_blocks: int,
    first_copy_N: Longs | None = None,
) -> Handle:
    """Handle of the `Neighbours`: the `min(search.k, N)` nearest samples by Euclidean distance.

    `features`: handle of float32 (N, D), finite, with norms up to 1e15. `first_copy_N`: their
    `distinct_rows`, by which many copies are set aside; not with groups. Memory: O(N k), and a few
    tiles for each task.
    """
    features_ND = runner.values([features])[0]
    num_samples = len(features_ND)
    if first_copy_N is not None:
        is_first = first_copy_N == np.arange(num_samples)
        if (~is_first).sum() > MANY_COPIES * num_samples:
            distinct = runner.share(features_ND[is_first])
            found = nearest_neighbours(runner, distinct, search, num_blocks)
            copy_of_N = runner.share(np.cumsum(is_first)[first_copy_N].astype(np.int32) - 1)
            blocks, k = row_blocks(num_samples, num_blocks), min(search.k, num_samples)
            lists = runner.run("neighbours: copies", with_copies, blocks, found, copy_of_N, k)
            return run_one(runner, "neighbours: join", join, *lists)
    search = search._replace(k=min(search.k, num_samples))
    changes = np.flatnonzero(np.diff(search.groups.of_N)) + 1
    edges = [0, *changes.tolist(), num_samples]
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
    num_near = search.num_near(blocks[-1][1])
    lists: list[Handle]
    if search.groups.same:
        own = [(block, num_near) for block in blocks]
        lists = runner.run("neighbours: products", meet_itself, own, features)
    else:
        lists = [no_candidates(block, num_near) for block in blocks]
    for pairs in tournament(len(blocks)):
        pairs = [(a, b) for a, b in pairs if search.meet(blocks[a][0], blocks[b][0])]
        both = [(lists[a], lists[b]) for a, b in pairs]
        met = runner.run("neighbours: products", meet, both, features, num_results=2)
        for (a, b), (of_a, of_b) in zip(pairs, met, strict=True):
            lists[a], lists[b] = of_a, of_b
    each = [(own,) for own in lists]
    parts = runner.run("neighbours: refine", refine, each, features, runner.share(search))
    return run_one(runner, "neighbours: join", join, *parts)


def join(*parts: Neighbours) -> Neighbours:
    """Neighbours of all rows from those of the row blocks, in order."""
    return Neighbours(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def with_copies(
    distinct: Neighbours, copy_of_N: Ints, k: int, row_start: int, row_stop: int
) -> Neighbours:
    """Neighbours of rows row_start..row_stop from those of the distinct samples.

    `copy_of_N`: which distinct sample each sample is. The k nearest distinct samples and their
    copies are more than enough.
    """
    k = min(k, len(copy_of_N))
    by_distinct = np.argsort(copy_of_N, kind="stable").astype(np.int32)
    edges = np.searchsorted(copy_of_N[by_distinct], np.arange(len(distinct.indices_NK) + 1))
    indices_RK, sq_bits_RK = copy_rows(
        distinct.indices_NK,
        distinct.sq_distances_NK.view(np.int32),
        copy_of_N,
        by_distinct,
        edges,
        k,
        row_start,
        row_stop,
    )
    max_sq_R = distinct.max_sq_distance_N[copy_of_N[row_start:row_stop]]
    return Neighbours(indices_RK, sq_bits_RK.view(np.float32), max_sq_R)
