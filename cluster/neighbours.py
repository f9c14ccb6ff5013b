"""Exact k-nearest neighbours of every sample, without an N x N matrix.

1. Candidates: on CPUs, row blocks meet in pairs and keep running lists (`cluster.products`); a GPU
   searches its rows among all others (`cluster.search_on_device`).
2. Candidates are measured again exactly and ordered by (distance, index). A certificate shows
   that rounding can't have hidden a nearer sample; rows without it are searched again
   (`cluster.refine`).
"""

from itertools import islice, pairwise

import numpy as np

from cluster.choose_products import in_bf16
from cluster.products import meet, meet_itself, no_candidates, squared_norms
from cluster.refine import SLACK, Neighbours, Search, refine
from cluster.run import Handle, Runner, row_blocks, run_one
from cluster.search_on_device import ROWS_ON_DEVICE, search_rows


def nearest_neighbours(
    runner: Runner, features: Handle, search: Search, blocks: list[tuple[int, int]]
) -> Handle:
    """Handle of the `Neighbours`: the `min(search.k, N)` nearest samples by Euclidean distance.

    `features`: handle of float32 (N, D), finite, with norms up to 1e15. `blocks` cut the N rows;
    groups of `search` are cut into about as many. Memory: O(N k), and a few tiles for each task.
    """
    num_samples = blocks[-1][1]
    search = search._replace(k=min(search.k, num_samples))
    changes = np.flatnonzero(np.diff(search.groups.of_N)) + 1
    edges = [0, *changes.tolist(), num_samples]
    if runner.device != "cpu":
        on_device = blocks_between(edges, ROWS_ON_DEVICE)
        parts = runner.on_device("neighbours: search", search_rows, on_device, features, search)
        if parts is not None:
            return runner.share(join(*parts))
    return search_on_cpus(
        runner, features, search, blocks_between(edges, -(-num_samples // len(blocks)))
    )


def blocks_between(edges: list[int], most_rows: int) -> list[tuple[int, int]]:
    """Row blocks of at most so many rows, none across an edge."""
    return [
        (first + start, first + stop)
        for first, last in pairwise(edges)
        for start, stop in row_blocks(last - first, -(-(last - first) // most_rows))
    ]


def search_on_cpus(
    runner: Runner, features: Handle, search: Search, blocks: list[tuple[int, int]]
) -> Handle:
    """Blocks meet in pairs, round by round. Each is refined after its last round."""
    search = search._replace(by_cuvs=False, operand=0.0, slack=SLACK)
    search, operands = in_bf16(runner, features, search, blocks[-1][1])
    shared = runner.share(search)
    sq_norms = run_one(runner, "neighbours: norms", squared_norms, features)
    lists: list[Handle]
    if search.groups.same:
        own = [(block,) for block in blocks]
        lists = runner.run("neighbours: products", meet_itself, own, operands, sq_norms, shared)
    else:
        lists = [no_candidates(block, search, blocks[-1][1]) for block in blocks]
    for pairs in tournament(len(blocks)):
        pairs = [(a, b) for a, b in pairs if search.meet(blocks[a][0], blocks[b][0])]
        both = [(lists[a], lists[b]) for a, b in pairs]
        met = runner.run("neighbours: products", meet, both, operands, sq_norms, num_results=2)
        for (a, b), (of_a, of_b) in zip(pairs, met, strict=True):
            lists[a], lists[b] = of_a, of_b
    each = [(own,) for own in lists]
    parts = runner.run("neighbours: refine", refine, each, features, shared)
    return run_one(runner, "neighbours: join", join, *parts)


def tournament(num_blocks: int) -> list[list[tuple[int, int]]]:
    """Rounds in which every two blocks meet exactly once, and no block twice in a round.

    The pairs of a round can be worked on at the same time. (The circle method: one place stays, the
    others turn around it; with an odd number one block rests.)
    """
    places = list(range(num_blocks + num_blocks % 2))
    rounds = []
    for _ in range(len(places) - 1):
        pairs = islice(zip(places, reversed(places), strict=True), len(places) // 2)
        rounds.append([(min(pair), max(pair)) for pair in pairs if max(pair) < num_blocks])
        places = [places[0], places[-1], *places[1:-1]]
    return rounds


def join(*parts: Neighbours) -> Neighbours:
    """Neighbours of all rows from those of the row blocks, in order."""
    return Neighbours(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
