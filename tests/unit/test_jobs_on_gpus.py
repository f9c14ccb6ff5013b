"""Pseudo-labels and scores as jobs of workers, by workers that are pretended here."""

from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch

from cluster.device import is_out_of_memory
from cluster.estimate import estimate_pseudo_labels
from cluster.ray_run import estimate_on_ray
from daal.config import ClusterConfig
from daal.errors import LabelError
from daal.evaluation import evaluate
from pipelines.training import evaluate as module
from pipelines.training.evaluate import BY_CPU, EvaluateJob
from pipelines.training.pseudo_labels import StageJob, stages_on
from pipelines.workers.group import Worker
from pipelines.workers.watchdog import Watchdog

CONFIG = ClusterConfig(q=8, k1=10)
PIDS, CAMIDS = np.repeat(np.arange(20), 15), np.arange(300) % 3
FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError("std::bad_alloc: out_of_memory: CUDA error at: rmm/mr/device.hpp"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: out of memory"),
]


def features():
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((20, 16))[PIDS] + 0.5 * rng.standard_normal((300, 16))
    return drawn.astype(np.float32)


class Pretended:
    """Workers of one process, on a device that need not be there; they run a job one after
    the other."""

    def __init__(self, number, device="cpu"):
        self.events = []
        log = SimpleNamespace(remote=self.events.append)
        queue, watchdog = SimpleNamespace(log=log), Watchdog(0, self.events.append)
        self.all = [
            Worker(rank, number, torch.device(device), queue, None, watchdog)
            for rank in range(number)
        ]

    def run(self, job):
        return [job.run(worker) for worker in self.all]


@pytest.fixture(autouse=True)
def values_are_references(monkeypatch):
    for name in ("get", "put"):
        monkeypatch.setattr(ray, name, lambda given: given)


@pytest.mark.parametrize("number", [1, 2, 8])
def test_blocks_are_dealt_out__values_come_in_their_order(number):
    blocks = [(7 * block, 7 * block + 7) for block in range(5)]

    def stage(shared, device, start, stop):
        return shared, device, start, stop

    workers = Pretended(number, "cuda:1")
    found = stages_on(workers)("x", stage, blocks, [3])
    assert found == [([3], "cuda", *block) for block in blocks]


def test_labels_on_workers__those_of_this_process_alone():
    workers, threads = Pretended(2), torch.get_num_threads()
    found = estimate_on_ray(
        features(), CONFIG, camids_N=CAMIDS, num_threads=threads + 1,
        on_gpus=stages_on(workers),
    )  # fmt: skip
    alone = estimate_pseudo_labels(features(), CONFIG, camids_N=CAMIDS)
    assert np.array_equal(found.labels, alone.labels) and found.eps == alone.eps
    assert found.cross_camera_silhouette == alone.cross_camera_silhouette
    assert torch.get_num_threads() == threads, "the next training would have others"


def test_an_error_of_ours_is_a_result__and_raised_by_the_driver():
    def stage(device, start, stop):
        raise LabelError("no pair")

    assert isinstance(Pretended(1).run(StageJob("x", stage, ((0, 1),), ()))[0], LabelError)
    with pytest.raises(LabelError, match="no pair"):
        stages_on(Pretended(2))("x", stage, [(0, 1), (1, 2)])


@pytest.mark.parametrize("error", FULL, ids=repr)
def test_what_a_full_gpu_says(error):
    assert is_out_of_memory(error)


def test_a_full_gpu__the_cpu_finds_the_same_scores(monkeypatch):
    def full(*sides, device):
        if device == "cuda":
            raise FULL[0]
        return evaluate(*sides, device=device)

    monkeypatch.setattr(module, "evaluate", full)
    side = (features(), PIDS, CAMIDS)
    workers, threads = Pretended(2, "cuda:1"), torch.get_num_threads()
    first, second = workers.run(EvaluateJob("x/evaluate", (*side, *side), threads + 1))
    assert first.map == evaluate(*side, *side).map and second is None
    assert [event["note"] for event in workers.events] == [BY_CPU]
    assert torch.get_num_threads() == threads
