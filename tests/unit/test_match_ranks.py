"""Ranks without sorting: exact for hard cases, whatever the products round."""

import numpy as np
import pytest
import torch
from evaluation_by_loops import check_against_loops, evaluate_by_loops, random_sides
from hypothesis import given, settings
from hypothesis import strategies as st

from daal import match_ranks
from daal.evaluation import evaluate


def exact_sides(kind, seed):
    """Features whose squared distances hold no rounding in float64, in whatever order they add."""
    generator = np.random.default_rng(seed)
    channels = int(generator.integers(1, 40))

    def side(n):
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


@settings(max_examples=80)
@given(
    kind=st.sampled_from(["coarse", "near ties", "collapsed", "two values", "far", "one outlier"]),
    seed=st.integers(0, 2**32 - 1),
    direct_share=st.sampled_from([0, 0.1, 1]),  # float64 whenever anything is open, or never
    rows=st.sampled_from([1, 7, 1024]),
)
def test_any_round_of_products_equals_plain_loops(kind, seed, direct_share, rows):
    query, gallery = exact_sides(kind, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(match_ranks, "DIRECT_SHARE", direct_share)
        patch.setattr(match_ranks, "QUERY_ROWS", rows)
        patch.setattr(match_ranks, "GALLERY_ROWS", rows)
        check_against_loops(query, gallery)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    exponent=st.sampled_from([0, -3, 3]),
)
def test_any_dtype_equals_plain_loops(seed, dtype, exponent):
    query, gallery = random_sides(seed, 12, 90, 24)
    sides = [
        (torch.from_numpy(side[0]).to(dtype) * 2.0**exponent, *side[1:])
        for side in (query, gallery)
    ]
    result = evaluate(*sides[0], *sides[1])
    loops = [(side[0].double().numpy(), *side[1:]) for side in sides]
    rectangle, _, first = evaluate_by_loops(*loops)
    np.testing.assert_array_equal(result.first_match_rank, first)
    np.testing.assert_allclose(result.ap, rectangle, rtol=1e-14)


@pytest.mark.parametrize("factor", [1e18, 1e-17])
def test_features_whose_squares_overflow_or_vanish_in_float32(factor):
    query, gallery = random_sides(7, 10, 80, 20)
    query[0][:] *= np.float32(factor)
    gallery[0][:] *= np.float32(factor)
    with np.errstate(all="raise"):
        check_against_loops(query, gallery)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_stay_within_the_error_bound(dtype):
    generator = torch.Generator().manual_seed(0)
    same_sign = torch.rand(30, 700, generator=generator, dtype=torch.float64) + 1
    signs = torch.randint(0, 2, (30, 700), generator=generator) * 2 - 1
    for features in (same_sign, same_sign * signs, same_sign * same_sign[0], same_sign**30):
        queries, others = features[:12], features[12:] / 3
        squares = others.square().sum(1)
        tile = match_ranks._tile((-2 * queries).to(dtype), others.to(dtype), squares)
        # In whole numbers of 2^-60, which Python adds without rounding.
        whole = [[[int(x * 2.0**60) for x in row] for row in side.tolist()]
                 for side in (queries, others)]  # fmt: skip
        exact = torch.tensor(
            [[float(sum(b * b - 2 * a * b for a, b in zip(q, g, strict=True))) for g in whole[1]]
             for q in whole[0]], dtype=torch.float64) * 2.0**-120  # fmt: skip
        radius = float(torch.stack([queries.norm(dim=1).max(), squares.max().sqrt()]).max())
        bound = match_ranks._error_bound(dtype, radius, 700)
        assert float((tile.double() - exact).abs().max()) <= bound
        # And it is of use: no more than twice the roundings of a sum in order.
        assert bound < 4 * torch.finfo(dtype).eps * 700 * radius**2


def test_settings_for_training_and_threads_change_nothing():
    query, gallery = random_sides(11, 20, 300, 64)
    gallery[0][150:] = gallery[0][:150]
    expected = evaluate(*query, *gallery)
    before, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("medium")
    torch.set_num_threads(3)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            result = evaluate(*query, *gallery)
    finally:
        torch.set_float32_matmul_precision(before)
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(result.ap, expected.ap)
    np.testing.assert_array_equal(result.first_match_rank, expected.first_match_rank)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu():
    query, gallery = random_sides(6, 50, 2000, 256)
    gallery[0][1000:] = gallery[0][:1000]
    cpu, gpu = evaluate(*query, *gallery), evaluate(*query, *gallery, device="cuda")
    np.testing.assert_array_equal(cpu.first_match_rank, gpu.first_match_rank)
    np.testing.assert_allclose(cpu.ap, gpu.ap, rtol=1e-14)
