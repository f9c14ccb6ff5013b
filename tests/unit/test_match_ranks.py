"""Ranks without sorting: exact for hard cases, whatever the products round."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from evaluation_by_loops import Arrays, check_against_loops, evaluate_by_loops, random_sides
from hypothesis import given, settings
from hypothesis import strategies as st

from daal import match_ranks
from daal.evaluation import evaluate


def exact_sides(kind: str, seed: int) -> tuple[Arrays, Arrays]:
    """Features whose squared distances hold no rounding in float64, in whatever order they add."""
    generator = np.random.default_rng(seed)
    channels = int(generator.integers(1, 40))

    def side(n: int) -> Arrays:
        steps = generator.integers(-2, 3, (n, channels)).astype(np.float64)
        fine = generator.integers(-2, 3, (n, channels)) * 2.0**-20
        features = {
            "coarse": steps,
            "near ties": generator.integers(0, 2, (n, 1)) + fine,
            "collapsed": np.zeros((n, channels)) + 3 * 2.0**-4,
            "two values": np.zeros((n, channels)) + generator.integers(0, 2, (n, 1)),
            "far": 8 + fine,
            "one outlier": fine + 4 * (np.arange(n) == 0)[:, None],
        }[kind]
        return (
            features.astype(np.float32),
            generator.integers(-1, 5, n),
            generator.integers(0, 3, n),
        )

    query, gallery = side(int(generator.integers(1, 12))), side(int(generator.integers(1, 60)))
    copied = generator.integers(0, len(gallery[0]), len(gallery[0]) // 3)
    gallery[0][: len(copied)] = gallery[0][copied]
    query[0][0] = gallery[0][-1]
    return query, gallery


@settings(max_examples=200)
@given(
    kind=st.sampled_from(["coarse", "near ties", "collapsed", "two values", "far", "one outlier"]),
    seed=st.integers(0, 2**32 - 1),
    at_least=st.sampled_from([0, 3, 10**6]),
    rows=st.sampled_from([1, 7, 1024]),
)
def test_any_round_of_products_equals_plain_loops(
    kind: str, seed: int, at_least: int, rows: int
) -> None:
    query, gallery = exact_sides(kind, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(match_ranks, "DIRECT_AT_LEAST", at_least)
        patch.setattr(match_ranks, "QUERY_ROWS", rows)
        patch.setattr(match_ranks, "GALLERY_ROWS", rows)
        check_against_loops(query, gallery)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    exponent=st.sampled_from([0, -3, 3]),
)
def test_any_dtype_equals_plain_loops(seed: int, dtype: torch.dtype, exponent: int) -> None:
    query, gallery = random_sides(seed, 12, 90, 24)
    sides = [
        (torch.from_numpy(side[0]).to(dtype) * 2.0**exponent, *side[1:])
        for side in (query, gallery)
    ]
    before = [side[0].clone() for side in sides]
    result = evaluate(*sides[0], *sides[1])
    assert all(torch.equal(side[0], copy) for side, copy in zip(sides, before, strict=True))
    loops = [(side[0].double().numpy(), *side[1:]) for side in sides]
    rectangle, _, first = evaluate_by_loops(*loops)
    np.testing.assert_array_equal(result.first_match_rank, first)
    np.testing.assert_allclose(result.ap, rectangle, rtol=1e-14)


@pytest.mark.parametrize("factor", [1e18, 1e-17])
def test_features_whose_squares_overflow_or_vanish_in_float32(factor: float) -> None:
    query, gallery = random_sides(7, 10, 80, 20)
    query[0][:] *= np.float32(factor)
    gallery[0][:] *= np.float32(factor)
    with np.errstate(all="raise"):
        check_against_loops(query, gallery)


class Watched:
    """Which products were made, for how many queries, and how many pairs were measured."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.rounds: list[tuple[torch.dtype, int]] = []
        self.num_pairs = 0
        count_nearer, direct_distance = match_ranks._count_nearer, match_ranks.direct_distance

        def count(dtype: torch.dtype, queries: torch.Tensor, *rest):
            self.rounds.append((dtype, len(queries)))
            return count_nearer(dtype, queries, *rest)

        def measure(queries, rows, gallery, columns):
            self.num_pairs += len(rows)
            return direct_distance(queries, rows, gallery, columns)

        patch.setattr(match_ranks, "_count_nearer", count)
        patch.setattr(match_ranks, "direct_distance", measure)
        patch.setattr(match_ranks, "_workers", one_worker)


@contextmanager
def one_worker(device):
    with workers(device):
        yield 1, map


workers = match_ranks._workers


def test_float32_is_enough_for_features_that_lie_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    query, gallery = random_sides(8, 30, 400, 64)
    result = check_against_loops(query, gallery)
    num_matches = sum(
        ((gallery[1] == pid) & (gallery[2] != camid)).sum()
        for pid, camid in zip(*query[1:], strict=True) if pid >= 0
    )  # fmt: skip
    assert watched.rounds == [(torch.float32, result.num_valid_queries)]
    assert watched.num_pairs < 1.05 * num_matches


def test_only_queries_with_much_left_open_go_on_to_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The first ten queries and all of their matches lie in a heap that float32 can't tell apart.
    query, gallery = random_sides(9, 30, 400, 64)
    heap = np.arange(400) % 2 == 0
    query[1][:] = np.arange(30) % 3 + 3 * (np.arange(30) < 10)
    gallery[1][:] = np.arange(400) // 2 % 3 + 3 * heap
    query[0][:10] = 4 + 2.0**-21 * query[0][:10]
    gallery[0][heap] = 4 + 2.0**-21 * gallery[0][heap]
    watched = Watched(monkeypatch)
    result = check_against_loops(query, gallery)
    assert result.num_valid_queries == 30
    assert watched.rounds == [(torch.float32, 30), (torch.float64, 10)]


def test_copies_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = random_sides(10, 10, 300, 8)
    query[1][:], query[2][:], gallery[2][:] = 0, 0, 1
    gallery[1][:] = np.arange(300) % 30  # ten matches for each
    query[0][:], gallery[0][:] = 0.3, 0.3
    watched = Watched(monkeypatch)
    check_against_loops(query, gallery)
    assert watched.rounds == [(torch.float32, 10), (torch.float64, 10)]
    assert watched.num_pairs == 10 * (10 + 1)  # the matches, and the one feature of all others


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_stay_within_the_error_bound(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    same_sign = torch.rand(30, 700, generator=generator, dtype=torch.float64) + 1
    signs = torch.randint(0, 2, (30, 700), generator=generator) * 2 - 1
    for features in (same_sign, same_sign * signs, same_sign * same_sign[0], same_sign**30):
        queries, others = features[:12], features[12:] / 3
        squares = others.square().sum(1)
        tile = torch.empty(len(queries), len(others), dtype=dtype)
        match_ranks._fill_tile(tile, (-2 * queries).to(dtype), others.to(dtype), squares.to(dtype))
        # In whole numbers of 2^-60, which Python adds without rounding.
        whole = [[[int(x * 2.0**60) for x in row] for row in side.tolist()]
                 for side in (queries, others)]  # fmt: skip
        exact = torch.tensor(
            [[float(sum(b * b - 2 * a * b for a, b in zip(q, g, strict=True))) for g in whole[1]]
             for q in whole[0]], dtype=torch.float64) * 2.0**-120  # fmt: skip
        bound = match_ranks._error_bound(
            dtype, queries.square().sum(1).sqrt(), squares.max().sqrt(), 700
        )
        error = (tile.double() - exact).abs().amax(1)
        assert bool((error <= bound).all())
        # And it is of use: no more than twice the roundings of a sum in order.
        largest = queries.square().sum(1).max() + squares.max()
        assert bool((bound < 2 * torch.finfo(dtype).eps * 700 * largest).all())


def test_settings_for_training_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = random_sides(11, 20, 300, 64)
    threads = torch.get_num_threads()
    tiles: list[torch.Tensor] = []
    fill_tile = match_ranks._fill_tile

    def fill(tile: torch.Tensor, *rest: torch.Tensor) -> None:
        fill_tile(tile, *rest)
        tiles.append(tile.clone())

    monkeypatch.setattr(match_ranks, "_fill_tile", fill)
    monkeypatch.setattr(match_ranks, "_workers", one_worker)
    expected = evaluate(*query, *gallery)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            result = evaluate(*query, *gallery)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(tiles[0], tiles[1]) and len(tiles) == 2
    assert torch.get_num_threads() == threads
    np.testing.assert_array_equal(result.ap, expected.ap)
    np.testing.assert_array_equal(result.first_match_rank, expected.first_match_rank)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_does_not_depend_on_threads(num_threads: int) -> None:
    query, gallery = random_sides(12, 50, 300, 32)
    expected = evaluate(*query, *gallery)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        result = evaluate(*query, *gallery)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(result.ap, expected.ap)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu() -> None:
    query, gallery = random_sides(6, 50, 2000, 256)
    gallery[0][1000:] = gallery[0][:1000]
    cpu, gpu = evaluate(*query, *gallery), evaluate(*query, *gallery, device="cuda")
    np.testing.assert_array_equal(cpu.first_match_rank, gpu.first_match_rank)
    np.testing.assert_allclose(cpu.ap, gpu.ap, rtol=1e-14)
