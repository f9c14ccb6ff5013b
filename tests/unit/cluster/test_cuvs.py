"""Candidates by cuVS, with a stand-in whose products are rounded as on TF32 units: the neighbours
are those of the exact search."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import reference
import torch
from support import first, same_bits

from cluster.estimate import estimate_pseudo_labels
from cluster.neighbours import nearest_neighbours
from cluster.refine import Search, fixed_point_scale
from cluster.run import Threads, row_blocks
from cluster.search_on_device import by_cuvs, search_rows
from daal.config import ClusterConfig
from daal.errors import ConfigError

UNIT = 2.0**-11  # half of the last place that TF32 keeps of 1


def as_tf32(x):
    return (((x.view(torch.int32) + (1 << 12)) >> 13) << 13).view(torch.float32)


def build(dataset, metric):
    return SimpleNamespace(dataset=dataset, metric=metric)


def search(index, queries, k, *, neighbors, distances):
    """As cuVS's brute force."""
    products = as_tf32(queries) @ as_tf32(index.dataset).T
    if index.metric == "inner_product":
        values, indices = products.topk(k)
    else:
        squares = [x.square().sum(1) for x in (queries, index.dataset)]
        values, indices = (squares[0][:, None] + squares[1] - 2 * products).topk(k, largest=False)
    neighbors.copy_(indices)
    distances.copy_(values)


@pytest.fixture
def cuvs(monkeypatch):
    package, neighbors = ModuleType("cuvs"), ModuleType("cuvs.neighbors")
    neighbors.brute_force = SimpleNamespace(build=build, search=search)
    monkeypatch.setitem(sys.modules, "cuvs", package)
    monkeypatch.setitem(sys.modules, "cuvs.neighbors", neighbors)


def drawn(num_samples=300, num_copies=0, noise=0.3):
    features = reference.drawn(num_samples, 24, 20, seed=1, num_copies=num_copies, noise=noise)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def both(runner, features, k):
    """The exact neighbours, and those by way of cuVS."""
    search = Search(k, fixed_point_scale(features))
    exact = nearest_neighbours(runner, features, search, row_blocks(len(features), 3))
    with Threads(2, "cpu:0") as threads:  # to the stages, a device that isn't called cpu
        blocks = row_blocks(len(features), 3)
        found = nearest_neighbours(threads, features, by_cuvs(search), blocks)
    return exact, first(found, min(k, len(features)))


@pytest.mark.usefixtures("cuvs")
@pytest.mark.parametrize("num_copies", [0, 2, 40])
@pytest.mark.parametrize("k", [1, 2, 12, 400])
def test_neighbours_are_the_exact_ones(runner, num_copies, k):
    exact, found = both(runner, drawn(num_copies=num_copies), k)
    assert same_bits(found, exact)


@pytest.mark.usefixtures("cuvs")
def test_a_rounding_that_hides_a_neighbour_is_found():
    """Without candidates beyond those asked for, coarse products choose wrong ones."""
    features = drawn(noise=0.01)
    search = Search(8, fixed_point_scale(features))
    expected = first(search_rows(features, search, "cpu", 0, 300), 8)
    search = by_cuvs(search)._replace(slack=0)
    blind = search_rows(features, search._replace(certify=False), "cpu", 0, 300)
    assert not same_bits(first(blind, 8), expected)
    assert same_bits(first(search_rows(features, search, "cpu", 0, 300), 8), expected)


# Farthest samples are found among features of length 1; the following are only nearly so.


def moved(features, sq_distances, first_row):
    """The rows from there on moved by so much, in directions of their own."""
    for place, step in enumerate(np.sqrt(np.asarray(sq_distances) / 2)):
        features[first_row + place, 2 * (place % 32)] += step
        features[first_row + place, 2 * (place % 32) + 1] -= step
    return features.astype(np.float32)


DOWN, UP = (1 + UNIT * (1 - 1 / 64)) / 8, (1 + UNIT * (1 + 1 / 64)) / 8  # as TF32 rounds them


@pytest.mark.usefixtures("cuvs")
@pytest.mark.parametrize("spread", [1, 4, 8, 20])
def test_rounding_that_errs_one_way_hides_no_neighbour(runner, spread):
    """Products of two rows that round down are 4 units too small, others are right."""
    rng = np.random.default_rng(10 * spread)
    features = np.where(rng.random((120, 1)) < 0.5, DOWN, UP) * np.ones(64)
    features = moved(features, spread * UNIT * rng.random(120), 0)
    for k in (2, 4):
        exact, found = both(runner, features, k)
        assert same_bits(found[:2], exact[:2])


@pytest.mark.usefixtures("cuvs")
@pytest.mark.parametrize("dialect", ["zhong", "faiss"])
def test_labels_are_the_same(dialect):
    config = ClusterConfig(q=6, k1=10, k2=3, dialect=dialect)
    expected = estimate_pseudo_labels(drawn(), config)
    with Threads(2, "cpu:0") as threads:
        config = config.model_copy(update={"search": "cuvs"})
        found = estimate_pseudo_labels(drawn(), config, runner=threads)
    assert found.eps == expected.eps
    assert np.array_equal(found.labels, expected.labels)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_without_cuvs_or_a_gpu_it_says_so(monkeypatch, device):
    monkeypatch.setitem(sys.modules, "cuvs", None)  # can't be imported
    with Threads(2, device) as threads, pytest.raises(ConfigError, match="package cuvs"):
        estimate_pseudo_labels(drawn(), ClusterConfig(search="cuvs"), runner=threads)
