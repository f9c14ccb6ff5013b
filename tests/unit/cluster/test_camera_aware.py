"""CA-Jaccard against its definition, and what must not change it."""

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from support import all_distances, in_given_order, lattice

from cluster.arrays import ONE
from cluster.camera_aware import CameraNeighbours, encode_by_camera
from cluster.estimate import estimate_pseudo_labels
from cluster.refine import FIXED_POINT, Search
from cluster.run import Threads, row_blocks
from daal.config import ClusterConfig
from daal.errors import ConfigError

CONFIG = ClusterConfig(camera_aware=True, p=0.05, min_samples=3)
COUNTS = CameraNeighbours(4, 10, 2, 3)


@pytest.fixture(autouse=True)
def few_neighbours(monkeypatch):
    monkeypatch.setattr("cluster.estimate.CA_JACCARD", COUNTS)


def encoded(runner, features, camids, counts, num_blocks=3):
    blocks = row_blocks(len(features), num_blocks)
    order = np.argsort(camids, kind="stable")
    search = Search(0, float(FIXED_POINT))
    encodings, of_ordered = encode_by_camera(
        runner, features[order], search, camids[order], CameraNeighbours(*counts), blocks
    )
    return encodings, order[of_ordered]


def distances(runner, features, camids, counts, num_blocks=3):
    handles = encoded(runner, features, camids, counts, num_blocks)
    return all_distances(runner, handles, row_blocks(len(features), num_blocks))


def unit(features):
    """Rows of length 1; those at the origin become the first axis."""
    features[(features == 0).all(1), 0] = 1
    return features / np.linalg.norm(features, axis=1, keepdims=True)


unit_lattice = lattice.map(unit)
unit_drawn = st.builds(
    reference.drawn,
    st.integers(2, 30),
    st.integers(2, 8),
    st.integers(1, 5),
    seed=st.integers(0, 1000),
)
counts = st.tuples(st.integers(1, 35), st.integers(1, 35), st.integers(1, 35), st.integers(0, 35))


@settings(max_examples=100)
@given(
    st.one_of(unit_lattice, unit_drawn),
    st.integers(1, 4),
    st.integers(0, 1000),
    st.one_of(counts, st.just((5, 20, 2, 4)), st.just((2, 3, 2, 2))),
    st.integers(1, 5),
)
def test_any_small_set_of_one_to_four_cameras(
    runner, features, num_cameras, seed, counts, num_blocks
):
    # Camera numbers have gaps, as those of a data set may.
    camids = 3 * np.random.default_rng(seed).integers(0, num_cameras, len(features)) - 1
    handles = encoded(runner, features, camids, counts, num_blocks)
    expected = reference.camera_encodings(features, camids, *counts)
    np.testing.assert_allclose(in_given_order(runner, handles) / ONE, expected, atol=1e-8)
    np.testing.assert_allclose(
        all_distances(runner, handles, row_blocks(len(features), num_blocks)),
        reference.overlap_distance(expected),
        atol=1e-6,
    )


@pytest.fixture(scope="module")
def drawn():
    features = reference.drawn(200, 24, 15, seed=5, noise=0.4)
    sq, _ = reference.ranking(features)
    assert all(len(np.unique(row)) == 200 for row in sq)  # no ties, which go by index
    return features, np.random.default_rng(2).integers(0, 3, 200)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("num_blocks", [1, 3, 17])
def test_blocks_and_threads_change_no_bit(runner, drawn, num_blocks, num_threads):
    expected = distances(runner, *drawn, COUNTS)
    with Threads(num_threads, "cpu") as threads:
        assert np.array_equal(distances(threads, *drawn, COUNTS, num_blocks), expected)


def test_shuffling_and_renaming_cameras_only_shuffles(runner, drawn):
    features, camids = drawn
    order = np.random.default_rng(0).permutation(200)
    names = np.array([7, 2, 5])
    expected = distances(runner, features, camids, COUNTS)[np.ix_(order, order)]
    found = distances(runner, features[order], names[camids[order]], COUNTS)
    assert np.array_equal(found, expected)


def test_pseudo_labels_are_those_of_the_definition(drawn):
    features, camids = drawn
    found = estimate_pseudo_labels(features, CONFIG, camids_N=camids)
    distance = reference.camera_jaccard(features, camids, *COUNTS)
    assert found.eps == pytest.approx(reference.eps(distance, CONFIG.p), rel=1e-6)
    assert np.array_equal(found.labels, reference.dbscan(distance, found.eps, 3))
    assert found.num_clusters > 5


def test_cameras_of_unusable_features_are_left_out(drawn):
    features, camids = drawn
    expected = estimate_pseudo_labels(features, CONFIG, camids_N=camids)
    broken = np.insert(features, [3, 150], np.nan, axis=0)
    found = estimate_pseudo_labels(broken, CONFIG, camids_N=np.insert(camids, [3, 150], [9, 0]))
    assert found.labels[[3, 151]].tolist() == [-1, -1]
    assert np.array_equal(np.delete(found.labels, [3, 151]), expected.labels)


@pytest.mark.parametrize("num_blocks", [1, 5, 60])
def test_cameras_with_fewer_images_than_neighbours_and_near_ties(runner, num_blocks):
    """Bursts of nearly equal frames: whole rows are searched again whose lists aren't full."""
    rng = np.random.default_rng(0)
    features = np.repeat(rng.standard_normal((20, 64)), 12, axis=0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    features += np.sqrt(1e-5 / 64) * rng.standard_normal((240, 64))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    camids, counts = np.repeat(np.arange(20), 12), (12, 20, 2, 4)
    found = in_given_order(runner, encoded(runner, features, camids, counts, num_blocks))
    expected = reference.camera_encodings(features, camids, *counts)
    np.testing.assert_allclose(found / ONE, expected, atol=1e-7)


@pytest.mark.parametrize("camids", [None, np.zeros(7, int), np.arange(300)])
def test_cameras_that_are_absent_too_few_or_too_many(camids):
    features = reference.drawn(300, 16, 20, seed=1)
    with pytest.raises(ConfigError, match="camids"):
        estimate_pseudo_labels(features, CONFIG, camids_N=camids)
