"""Evaluation against a plain loop, hand-made cases, and reference values by other codes."""

import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from daal import float64_distance, match_ranks
from daal.errors import DataError
from daal.evaluation import EvaluationResult, evaluate

Arrays = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]


def golden(name: str) -> Path:
    folder = os.environ.get("DAAL_GOLDEN")
    if not folder:
        pytest.skip("set DAAL_GOLDEN to the folder of golden reference values to run this test")
    return Path(folder) / name


def evaluate_by_loops(query: Arrays, gallery: Arrays) -> tuple[list[float], list[float], list[int]]:
    """Rectangle AP, trapezoid AP and rank of the first match of each query, one row at a time."""
    rectangle, trapezoid, first = [], [], []
    for feature, pid, camid in zip(*query, strict=True):
        ranking = []
        for j, (other, other_pid, other_camid) in enumerate(zip(*gallery, strict=True)):
            if other_pid == -1 or (other_pid == pid and other_camid == camid):
                continue
            difference = feature.astype(np.float64) - other.astype(np.float64)
            ranking.append((float((difference**2).sum()), j, other_pid == pid and pid >= 0))
        hits = [rank for rank, (_, _, right) in enumerate(sorted(ranking)) if right]
        if not hits:
            rectangle.append(np.nan)
            trapezoid.append(np.nan)
            first.append(-1)
            continue
        at = [(n + 1) / (rank + 1) for n, rank in enumerate(hits)]
        before = [n / rank if rank else 1.0 for n, rank in enumerate(hits)]
        rectangle.append(float(np.mean(at)))
        trapezoid.append(float(np.mean([(a + b) / 2 for a, b in zip(at, before, strict=True)])))
        first.append(hits[0])
    return rectangle, trapezoid, first


def check_against_loops(query: Arrays, gallery: Arrays) -> EvaluationResult:
    result = evaluate(*query, *gallery)
    rectangle, trapezoid, first = evaluate_by_loops(query, gallery)
    np.testing.assert_array_equal(result.first_match_rank, first)
    np.testing.assert_allclose(result.ap, rectangle, rtol=1e-14)
    np.testing.assert_allclose(result.ap_official, trapezoid, rtol=1e-14)
    valid = [rank for rank in first if rank >= 0]
    assert result.num_valid_queries == len(valid)
    if valid:
        assert result.rank(1) == valid.count(0) / len(valid)
        assert result.map == pytest.approx(np.nanmean(rectangle), rel=1e-14)
        assert result.map_official == pytest.approx(np.nanmean(trapezoid), rel=1e-14)
    else:
        assert np.isnan([result.map, result.map_official, *result.cmc]).all()
    return result


def random_sides(
    seed: int, num_query: int, num_gallery: int, channels: int
) -> tuple[Arrays, Arrays]:
    generator = np.random.default_rng(seed)

    def side(n: int) -> Arrays:
        features = generator.normal(size=(n, channels)).astype(np.float32)
        return features, generator.integers(-1, 6, n), generator.integers(0, 3, n)

    return side(num_query), side(num_gallery)


def test_by_hand() -> None:
    # Distances from the query: 1 junk box, 2 own camera, 3 distractor, 4 match, 5 other, 6 match.
    features = np.array([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]], dtype=np.float32)
    pids, camids = [-1, 7, 0, 7, 8, 7], [2, 1, 2, 2, 1, 3]
    result = evaluate([[0.0]], [7], [1], features, pids, camids)
    # What is ranked: distractor, match, other, match.
    assert result.first_match_rank.tolist() == [1]
    assert result.map == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert result.map_official == pytest.approx(((1 / 2 + 0 / 1) / 2 + (2 / 4 + 1 / 3) / 2) / 2)
    assert result.cmc[:3].tolist() == [0, 1, 1]
    assert result.as_dict() == {
        "map": result.map,
        "map_official": result.map_official,
        "rank1": 0.0,
        "rank5": 1.0,
        "rank10": 1.0,
        "rank20": 1.0,
        "num_valid_queries": 1,
    }


def test_equal_distances_rank_by_gallery_index() -> None:
    result = evaluate([[0.0]], [1], [1], [[1.0], [-1.0], [1.0]], [2, 1, 2], [2, 2, 2])
    assert result.first_match_rank.tolist() == [1]


@pytest.mark.parametrize("name", ["mixed", "same_camera_gallery", "no_valid_query", "tiny_gallery",
                                  "perfect", "ties"])  # fmt: skip
def test_golden_cases(name: str) -> None:
    with np.load(golden("eval_cases.npz")) as arrays:
        assert name in arrays["case_names"]
        prefix = f"{name}__"
        check_golden(
            {key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)}
        )


def test_golden_real() -> None:
    with np.load(golden("eval_real.npz")) as arrays:
        check_golden(dict(arrays))


def check_golden(arrays: dict[str, NDArray[np.float64]]) -> None:
    sides = [
        f"{side}_{what}" for side in ("query", "gallery") for what in ("features", "pids", "camids")
    ]
    result = evaluate(*(arrays[name] for name in sides))
    assert result.num_valid_queries == arrays["num_valid_queries"]
    np.testing.assert_array_equal(result.first_match_rank, arrays["first_match_rank"])
    np.testing.assert_array_equal(result.cmc[arrays["cmc_ranks"].astype(int) - 1], arrays["cmc"])
    np.testing.assert_allclose(result.ap, arrays["ap_rectangle"], rtol=1e-12)
    np.testing.assert_allclose(result.ap_official, arrays["ap_official"], rtol=1e-12)
    np.testing.assert_allclose(result.map, arrays["map_rectangle"], rtol=1e-12)
    np.testing.assert_allclose(result.map_official, arrays["map_official"], rtol=1e-12)


# Few values, so that there are many ties, copies, junk boxes and queries without a match.
@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    channels=st.integers(1, 3),
    num_query=st.integers(0, 6),
    num_gallery=st.integers(0, 25),
)
def test_equals_plain_loops(
    data: st.DataObject, channels: int, num_query: int, num_gallery: int
) -> None:
    def side(n: int) -> Arrays:
        def column(low: int, high: int, count: int) -> NDArray[np.int64]:
            values = st.lists(st.integers(low, high), min_size=count, max_size=count)
            return np.array(data.draw(values), dtype=np.int64)

        features = column(-2, 2, n * channels).reshape(n, channels).astype(np.float32)
        return features, column(-1, 3, n), column(0, 1, n)

    check_against_loops(side(num_query), side(num_gallery))


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_does_not_depend_on_blocks(offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = random_sides(0, 23, 301, 33)
    gallery[0][150:] = gallery[0][:151]  # copies with other pids: ties everywhere
    gallery[0][:] += np.float32(offset)
    query[0][:] += np.float32(offset)
    whole = check_against_loops(query, gallery)
    monkeypatch.setattr(match_ranks, "QUERY_ROWS", 4)
    monkeypatch.setattr(match_ranks, "GALLERY_ROWS", 7)
    monkeypatch.setattr(match_ranks, "TABLE_SIZE", 100)
    monkeypatch.setattr(float64_distance, "CACHED_SIZE", 100)
    blocks = evaluate(*query, *gallery)
    np.testing.assert_array_equal(whole.ap, blocks.ap)
    np.testing.assert_array_equal(whole.first_match_rank, blocks.first_match_rank)


def test_collapsed_features_rank_by_index() -> None:
    query, gallery = random_sides(1, 10, 60, 5)
    query[0][:], gallery[0][:] = 0.3, 0.3
    check_against_loops(query, gallery)


def test_tiny_differences_far_from_zero() -> None:
    # In float32 products all of these would be equal.
    query, gallery = random_sides(2, 10, 60, 16)
    query[0][:], gallery[0][:] = 1 + 1e-6 * query[0], 1 + 1e-6 * gallery[0]
    check_against_loops(query, gallery)


def test_unknown_identities_never_match_but_pid_zero_can_be_a_person() -> None:
    result = evaluate([[0.0], [0.0]], [0, -2], [1, 1], [[0.0], [0.0]], [0, -2], [2, 2])
    assert result.num_valid_queries == 1


def test_tensors_halves_and_arrays_agree() -> None:
    query, gallery = random_sides(3, 8, 40, 4)
    halves = query[0].astype(np.float16), gallery[0].astype(np.float16)
    expected = evaluate(
        halves[0].astype(np.float32), *query[1:], halves[1].astype(np.float32), *gallery[1:]
    )
    tensors = [
        torch.from_numpy(array) for array in (halves[0], *query[1:], halves[1], *gallery[1:])
    ]
    np.testing.assert_array_equal(evaluate(*tensors).ap, expected.ap)


def test_inputs_are_left_alone() -> None:
    query, gallery = random_sides(4, 8, 40, 4)
    before = [array.copy() for array in (*query, *gallery)]
    evaluate(*query, *gallery)
    for array, copy in zip((*query, *gallery), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_max_rank() -> None:
    query, gallery = random_sides(5, 8, 40, 4)
    full, short = evaluate(*query, *gallery), evaluate(*query, *gallery, max_rank=5)
    assert len(full.cmc) == 50
    np.testing.assert_array_equal(short.cmc, full.cmc[:5])
    assert "rank10" not in short.as_dict()
    with pytest.raises(IndexError):
        short.rank(6)


def test_refuses_what_does_not_fit() -> None:
    features, ids = np.zeros((3, 2), np.float32), np.ones(3, np.int64)
    broken = features.copy()
    broken[1, 0] = np.nan
    with pytest.raises(DataError, match="row 1 of the gallery"):
        evaluate(features, ids, ids, broken, ids, ids)
    with pytest.raises(DataError, match="2 channels and gallery features 1"):
        evaluate(features, ids, ids, features[:, :1], ids, ids)
    with pytest.raises(DataError, match="query camids"):
        evaluate(features, ids, ids[:2], features, ids, ids)
    with pytest.raises(DataError, match="integers"):
        evaluate(features, ids * 0.5, ids, features, ids, ids)


# ---- Two rounds of products, and what they can't tell apart ----------------------------------


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


@settings(max_examples=200, deadline=None)
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


@settings(max_examples=60, deadline=None)
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
