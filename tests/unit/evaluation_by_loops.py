"""Evaluation as a plain loop over queries, and drawn sides to try it on."""

import numpy as np
import pytest
from numpy.typing import NDArray

from daal.evaluation import EvaluationResult, evaluate

Arrays = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]


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
