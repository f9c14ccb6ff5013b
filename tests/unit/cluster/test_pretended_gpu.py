"""Labels on tensors that say they are on a GPU: the CPU's bits, no mix of devices, few uploads."""

import numpy as np
import pytest
import reference
import torch
from support import dense_labels

from benchmarks.pretended_gpu import Pretended, pretended_gpu
from cluster.estimate import estimate_pseudo_labels
from cluster.runner import Threads
from daal.config import ClusterConfig

CONFIGS = {
    "zhong": {},
    "faiss": {"dialect": "faiss"},
    "tf32": {"products": "tf32"},
    "bf16": {"products": "bf16"},
    "cameras": {"camera_aware": True},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("backend", ["components", "auto"])
def test_labels_and_uploads(monkeypatch, changes, backend):
    monkeypatch.setattr("cluster.dbscan.cuml_available", lambda: True)
    monkeypatch.setattr("cluster.dbscan.most_dense", lambda device: 300)  # three blocks or so
    monkeypatch.setattr("cluster.dbscan.cuml_labels", of_pretended)
    features = reference.drawn(700, 64, 50, seed=7, noise=0.3)
    camids = np.random.default_rng(0).integers(0, 4, 700)
    config = ClusterConfig(backend=backend, eps_rule="q", q=6, **changes)
    with Threads(2, "cpu") as runner:
        expected = estimate_pseudo_labels(features, config, camids_N=camids, runner=runner)
    with pretended_gpu() as gpu, Threads(2, "cuda") as runner:
        found = estimate_pseudo_labels(features, config, camids_N=camids, runner=runner)
    assert found.eps == expected.eps
    assert np.array_equal(found.labels, expected.labels)
    assert ("dbscan: dense block" in found.stages) == (backend == "auto")
    # The features once, and the edges.
    assert features.nbytes <= gpu.uploaded < 1.5 * features.nbytes


def of_pretended(distance_BB, min_samples):
    assert isinstance(distance_BB, Pretended)
    return dense_labels(distance_BB, min_samples)


def test_tensors_of_two_devices_do_not_meet():
    with pretended_gpu():
        there = torch.zeros(3, device="cuda")
        with pytest.raises(RuntimeError, match="cuda:0 and on the CPU"):
            there + torch.zeros(3)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert (there.cpu() + torch.zeros(3)).tolist() == [0, 0, 0]
