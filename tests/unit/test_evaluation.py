"""Evaluation against a plain loop, hand-made cases, and reference values by other codes."""

import os
from pathlib import Path

import numpy as np
import pytest
from evaluation_by_loops import Arrays, check_against_loops, random_sides
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from daal.errors import DataError
from daal.evaluation import evaluate


def golden(name: str) -> Path:
    folder = os.environ.get("DAAL_GOLDEN")
    if not folder:
        pytest.skip("set DAAL_GOLDEN to the folder of golden reference values to run this test")
    return Path(folder) / name


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
@settings(max_examples=150)
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


def test_tiny_differences_far_from_zero() -> None:
    # In float32 products all of these would be equal.
    query, gallery = random_sides(2, 10, 60, 16)
    query[0][:], gallery[0][:] = 1 + 1e-6 * query[0], 1 + 1e-6 * gallery[0]
    check_against_loops(query, gallery)


def test_unknown_identities_never_match_but_pid_zero_can_be_a_person() -> None:
    result = evaluate([[0.0], [0.0]], [0, -2], [1, 1], [[0.0], [0.0]], [0, -2], [2, 2])
    assert result.num_valid_queries == 1


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


@pytest.mark.parametrize(("camid", "num_valid"), [(3, 0), (-1, 1)])
def test_a_query_of_an_unknown_camera__all_images_of_its_person_count(
    camid: int, num_valid: int
) -> None:
    query, gallery = np.eye(2)[:1], np.eye(2)
    found = evaluate(query, [1], [camid], gallery, [1, 2], [camid, camid])
    assert found.num_valid_queries == num_valid
    assert found.map == 1 if num_valid else np.isnan(found.map)
