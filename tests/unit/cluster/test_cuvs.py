"""Candidates by cuVS, with a stand-in for it: the neighbours are those of the exact search."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import reference
import torch
from support import same_bits

from cluster.estimate import estimate_pseudo_labels
from cluster.neighbours import nearest_neighbours
from cluster.refine import FIXED_POINT, Neighbours
from cluster.runner import Threads
from daal.config import ClusterConfig
from daal.errors import ConfigError
from daal.load_config import check_config


def build(dataset, metric):
    return SimpleNamespace(dataset=dataset, metric=metric)


def search(index, queries, k, *, neighbors, distances):
    """As cuVS's brute force, with products that are rounded as by TF32."""
    rounded = [(x * (1 + 2**-11 * torch.sign(x))) for x in (queries, index.dataset)]
    products = rounded[0] @ rounded[1].T
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


def drawn(num_samples=300, num_copies=0):
    features = reference.drawn(num_samples, 24, 20, seed=1, num_copies=num_copies)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.usefixtures("cuvs")
@pytest.mark.parametrize("num_copies", [0, 2, 40])
@pytest.mark.parametrize("k", [1, 2, 12, 400])
def test_neighbours_are_the_exact_ones(runner, num_copies, k):
    features = drawn(num_copies=num_copies)
    scale = float(FIXED_POINT)
    expected = runner.collect([nearest_neighbours(runner, features, k, 3)])[0]
    with Threads(2, "cpu:0") as threads:
        handle = nearest_neighbours(threads, features, k, 3, "tf32", scale=scale, by_cuvs=True)
        found = threads.collect([handle])[0]
    k = min(k, 300)
    first = Neighbours(found.indices_NK[:, :k], found.sq_distances_NK[:, :k], found[2])
    assert same_bits(first, expected)


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


@pytest.mark.parametrize("other", [{"camera_aware": True}, {"products": "bf16"}])
def test_what_it_can_not_do_is_refused(other):
    with pytest.raises(ConfigError, match=r"cluster\.search=exact"):
        check_config({"cluster": {"search": "cuvs", **other}})
