"""Candidates from tiles of rounded products."""

import numpy as np
import pytest
import reference
import torch

from cluster import products
from cluster.products import meet, meet_itself, rounded


def values():
    rng = np.random.default_rng(0)
    return (rng.standard_normal(10_000) * 10.0 ** rng.integers(-6, 6, 10_000)).astype(np.float32)


def test_bf16_is_rounded_as_torch_does():
    expected = torch.from_numpy(values()).bfloat16().float().numpy()
    assert np.array_equal(rounded(values(), "bf16"), expected)


@pytest.mark.parametrize(("precision", "kept_bits"), [("bf16", 7), ("tf32", 10), ("fp32", 23)])
def test_rounding_keeps_so_many_bits_and_errs_by_half_of_the_last(precision, kept_bits):
    found = rounded(values(), precision)
    mantissas = found.view(np.uint32) & ((1 << 23) - 1)
    assert (mantissas % (1 << (23 - kept_bits)) == 0).all()
    worst = np.abs(found / values() - 1).max()
    assert worst <= 2.0 ** -(kept_bits + 1)
    assert precision == "fp32" or worst > 2.0 ** -(kept_bits + 1.1)
    assert precision != "fp32" or np.array_equal(found, values())


def nearest_and_farthest(features, precision, row, columns, num_near):
    """(near, far) of one row among `columns` by float64 distances of the rounded features."""
    x = features.astype(float)
    r = rounded(features, precision).astype(float)
    sq = (x[row] ** 2).sum() + (x**2).sum(1) - 2 * r @ r[row]
    others = sorted((j for j in columns if j != row), key=lambda j: sq[j])
    return others[:num_near], others[: -products.NUM_FARTHEST - 1 : -1]


@pytest.mark.parametrize("tile", [640, 13])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_blocks_that_meet_know_the_best_of_both(monkeypatch, precision, tile):
    monkeypatch.setattr(products, "TILE", tile)
    features = reference.drawn(90, 16, 9, seed=1)
    first = meet_itself(features, precision, (10, 50), 12)
    second = meet_itself(features, precision, (50, 90), 12)
    for row in (0, 39):
        near, far = nearest_and_farthest(features, precision, 10 + row, range(10, 50), 12)
        assert (first.near_RC[row].tolist(), first.far_RF[row].tolist()) == (near, far)
    before = [array.copy() for array in first[1:]]
    for met in meet(features, precision, first, second):
        assert (np.diff(met.near_sq_RC) >= 0).all()
        assert (np.diff(met.far_sq_RF) <= 0).all()
        for row in range(40):
            near, far = nearest_and_farthest(
                features, precision, met.row_start + row, range(10, 90), 12
            )
            assert (met.near_RC[row].tolist(), met.far_RF[row].tolist()) == (near, far)
    for array, copy in zip(first[1:], before, strict=True):
        assert np.array_equal(array, copy)


def test_lists_end_where_there_are_no_more():
    features = reference.drawn(5, 4, 2, seed=2)
    found = meet_itself(features, "fp32", (0, 3), 5)
    assert (found.near_RC[:, :2] >= 0).all()
    assert (found.near_RC[:, 2:] == -1).all()
    assert np.isposinf(found.near_sq_RC[:, 2:]).all()
    assert (found.far_RF[:, 2:] == -1).all()
    assert np.isneginf(found.far_sq_RF[:, 2:]).all()
