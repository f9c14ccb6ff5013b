"""How rows are cut, and how the blocks meet."""

from itertools import combinations

import pytest

from cluster.blocks import row_blocks, tournament


@pytest.mark.parametrize("num_blocks", range(1, 13))
def test_every_two_blocks_meet_once(num_blocks):
    rounds = tournament(num_blocks)
    pairs = [pair for pairs in rounds for pair in pairs]
    assert sorted(pairs) == list(combinations(range(num_blocks), 2))
    assert len(rounds) == num_blocks - 1 + num_blocks % 2


@pytest.mark.parametrize("num_blocks", range(1, 13))
def test_no_block_plays_twice_in_a_round(num_blocks):
    for pairs in tournament(num_blocks):
        players = [block for pair in pairs for block in pair]
        assert len(set(players)) == len(players)


@pytest.mark.parametrize("num_rows", [1, 2, 7, 100])
@pytest.mark.parametrize("num_blocks", [1, 2, 3, 17, 1000])
def test_row_blocks_cover_all_rows_in_order_and_are_nearly_equal(num_rows, num_blocks):
    blocks = row_blocks(num_rows, num_blocks)
    assert [row for start, stop in blocks for row in range(start, stop)] == list(range(num_rows))
    assert len(blocks) == min(num_blocks, num_rows)
    sizes = {stop - start for start, stop in blocks}
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
