"""How rows are cut into blocks, and how blocks meet."""

from itertools import islice, pairwise


def row_blocks(num_rows: int, num_blocks: int) -> list[tuple[int, int]]:
    """Cut `num_rows` into at most `num_blocks` (start, stop) of nearly equal size, none empty."""
    num_blocks = max(1, min(num_blocks, num_rows))
    edges = [num_rows * block // num_blocks for block in range(num_blocks + 1)]
    return list(pairwise(edges))


def tournament(num_blocks: int) -> list[list[tuple[int, int]]]:
    """Rounds in which every two blocks meet exactly once, and no block twice in a round.

    The pairs of a round can be worked on at the same time without sharing a block. (The circle
    method: one place stays, the others turn around it; with an odd number one block rests.)
    """
    places = list(range(num_blocks + num_blocks % 2))
    rounds = []
    for _ in range(len(places) - 1):
        pairs = islice(zip(places, reversed(places), strict=True), len(places) // 2)
        rounds.append([(min(pair), max(pair)) for pair in pairs if max(pair) < num_blocks])
        places = [places[0], places[-1], *places[1:-1]]
    return rounds
