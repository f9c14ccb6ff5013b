"""The faiss index: nearly the exact neighbours, and refused where it can't find them."""

import re
import sys

import numpy as np
import pytest
import reference
from support import same_bits

from cluster.approximate import approximate_neighbours
from cluster.estimate import estimate_pseudo_labels
from cluster.neighbours import nearest_neighbours
from cluster.refine import FIXED_POINT, Search
from cluster.run import Threads, row_blocks
from daal.config import ClusterConfig
from daal.errors import ConfigError
from daal.load_config import check_config

pytest.importorskip("faiss")

SEARCH = Search(21, float(FIXED_POINT))
APPROXIMATE = ClusterConfig(search="approximate", q=10.35)
NOTE = r"Neighbours are approximate: recall (0\.99\d|1\.000) on 1,000 sampled images, nprobe \d+\."


@pytest.fixture(scope="module")
def features():
    features = reference.drawn(3000, 64, 120, seed=0)
    features.flags.writeable = False  # as in an object store
    return features


def exact(runner, features):
    return nearest_neighbours(runner, features, SEARCH, row_blocks(len(features), 3))


def approximate(runner, features):
    return approximate_neighbours(runner, features, SEARCH, row_blocks(len(features), 3))


def test_nearly_all_neighbours_are_the_exact_ones(runner, features):
    true = exact(runner, features)
    found, note = approximate(runner, features)
    said = re.fullmatch(NOTE, note)
    is_true = (found.sq_distances_NK <= true.sq_distances_NK[:, -1:])[:, 1:]
    assert is_true.mean() == pytest.approx(float(said[1]), abs=5e-3)
    # A row that misses no neighbour is the exact row, bit by bit.
    is_same = (found.indices_NK == true.indices_NK).all(1)
    assert is_same.mean() > 0.8
    assert np.array_equal(found.sq_distances_NK[is_same], true.sq_distances_NK[is_same])
    assert (np.diff(found.sq_distances_NK, axis=1) >= 0).all()
    assert found.indices_NK[:, 0].tolist() == list(range(3000))
    share_of_farthest = found.max_sq_distance_N / true.max_sq_distance_N
    assert 0.99 < share_of_farthest.mean() <= share_of_farthest.max() <= 1
    assert [array.dtype for array in found] == [array.dtype for array in true]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_change_no_bit(runner, features, num_threads):
    expected, _ = approximate(runner, features)
    with Threads(num_threads, "cpu") as threads:
        assert same_bits(approximate(threads, features)[0], expected)


@pytest.mark.parametrize("dialect", ["zhong", "faiss"])
def test_labels_are_nearly_the_exact_ones(runner, features, dialect):
    config = APPROXIMATE.model_copy(update={"dialect": dialect})
    found = estimate_pseudo_labels(features, config, runner=runner)
    true = estimate_pseudo_labels(
        features, config.model_copy(update={"search": "exact"}), runner=runner
    )
    assert re.fullmatch(NOTE, found.notes[0])
    assert found.num_clusters == pytest.approx(true.num_clusters, rel=0.02)
    assert found.eps == pytest.approx(true.eps, rel=0.05)
    rows, columns = np.triu_indices(len(features), 1)

    def together(labels):
        return (labels[rows] == labels[columns]) & (labels[rows] >= 0)

    both = (together(found.labels) & together(true.labels)).sum()
    either = (together(found.labels) | together(true.labels)).sum()
    assert both / either > 0.95


@pytest.mark.parametrize("num_samples", [2, 10, 300])
def test_small_sets_are_searched_whole(runner, num_samples, capfd):
    features = reference.drawn(num_samples, 8, 3, seed=1)
    found, note = approximate(runner, features)
    assert "recall 1.000" in note
    for array, true in zip(found, exact(runner, features), strict=True):
        assert np.array_equal(array, true)
    assert capfd.readouterr().err == ""


def test_refused_where_samples_have_no_clusters(runner):
    scattered = reference.drawn(3000, 64, 1, seed=0, noise=100.0)
    with pytest.raises(
        ConfigError, match=r"recall 0\.\d{3} on 1,000 .* nprobe 16 of 76 lists"
    ) as error:
        approximate(runner, scattered)
    assert "use cluster.search=exact" in str(error.value)


def test_faiss_that_is_not_installed_is_named(runner, features, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"pip install 'daal-reid\[faiss\]'"):
        estimate_pseudo_labels(features, APPROXIMATE, runner=runner)


@pytest.mark.parametrize("search", ["approximate", "cuvs"])
def test_cameras_are_searched_exactly(search):
    with pytest.raises(ConfigError, match="camera_aware=true needs cluster.search=exact") as error:
        check_config({"cluster": {"camera_aware": True, "search": search}})
    assert str(error.value).startswith("cluster.camera_aware")
