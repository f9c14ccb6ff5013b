"""Pseudo-labels and scores as jobs of workers, by workers that are pretended here."""

import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch

from cluster.estimate import PseudoLabels, estimate_pseudo_labels
from cluster.out_of_memory import is_out_of_memory
from daal.config import ClusterConfig
from daal.errors import LabelError
from daal.evaluation import evaluate
from pipelines import gpu_jobs
from pipelines.gpu_jobs import (
    LABELS_BY_CPU,
    SCORES_BY_CPU,
    EstimateJob,
    EvaluateJob,
    StageJob,
    WorkerThreads,
    estimate_on_workers,
    stages_on,
)
from pipelines.watchdog import Watchdog
from pipelines.workers import Worker, free_memory

CONFIG = ClusterConfig(eps_rule="q", q=8, k1=10)
CAMIDS = np.arange(300) % 3
FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError("std::bad_alloc: out_of_memory: CUDA error at: rmm/mr/device.hpp"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: out of memory"),
]


def features(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(20), 15)
    drawn = rng.standard_normal((20, 16))[pids] + 0.5 * rng.standard_normal((300, 16))
    return drawn.astype(np.float32)


class Pretended:
    """Workers of one process, on a device that need not be there; they run a job one after
    the other."""

    def __init__(self, number: int, device: str = "cpu") -> None:
        self.events: list[dict[str, Any]] = []
        log = SimpleNamespace(remote=self.events.append)
        self.all = [
            Worker(
                *(rank, number, torch.device(device), SimpleNamespace(log=log), None),
                Watchdog(0, self.events.append),
            )
            for rank in range(number)
        ]

    def run(self, job: Any) -> list[Any]:
        return [job.run(worker) for worker in self.all]

    def notes(self) -> list[str]:
        return [event["note"] for event in self.events]


@pytest.fixture(autouse=True)
def values_are_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda given: given)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


def estimate_job(*parts: np.ndarray, config: ClusterConfig = CONFIG, **given: Any) -> EstimateJob:
    eps = (None,) * len(parts)
    return EstimateJob(
        "iteration-01/estimate", config, parts, eps, CAMIDS, None, num_threads=2, **given
    )


def on_cuda(
    error: Exception, function: Callable[..., Any], device_of: Callable[[dict[str, Any]], str]
) -> Callable[..., Any]:
    """`function`, which raises the error on a GPU."""

    def run(*arguments: Any, **options: Any) -> Any:
        if device_of(options) == "cuda":
            raise error
        return function(*arguments, **options)

    return run


@pytest.mark.parametrize("number", [1, 2, 5])
def test_each_part_is_the_work_of_one_worker(number: int) -> None:
    parts = [features(seed) for seed in range(3)]
    found = estimate_on_workers(Pretended(number), estimate_job(*parts))  # type: ignore[arg-type]
    for labels, part in zip(found, parts, strict=True):
        alone = estimate_pseudo_labels(part, CONFIG, camids_N=CAMIDS)
        assert np.array_equal(labels.labels, alone.labels) and labels.eps == alone.eps
        assert labels.cross_camera_silhouette == alone.cross_camera_silhouette


def test_an_error_of_ours_is_a_result__the_first_parts_is_raised() -> None:
    config = CONFIG.model_copy(update={"min_clusters": 1000})
    workers, job = Pretended(2), estimate_job(features(), features(1), config=config)
    of_first = workers.run(job)[0][0]
    assert isinstance(of_first, LabelError)
    with pytest.raises(LabelError) as raised:
        estimate_on_workers(workers, job)  # type: ignore[arg-type]
    assert str(raised.value) == str(of_first)


@pytest.mark.parametrize("error", FULL, ids=repr)
def test_a_full_gpu__the_cpu_finds_the_same_labels(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = on_cuda(error, estimate_pseudo_labels, lambda options: options["runner"].device)
    monkeypatch.setattr(gpu_jobs, "estimate_pseudo_labels", full)
    config = CONFIG.model_copy(update={"backend": "cuml"})  # which a CPU hasn't
    job = estimate_job(features(), config=config)
    (found,) = estimate_on_workers(Pretended(1, "cuda:1"), job)  # type: ignore[arg-type]
    assert found.notes[-1] == LABELS_BY_CPU
    alone = estimate_pseudo_labels(features(), CONFIG, camids_N=CAMIDS)
    assert np.array_equal(found.labels, alone.labels)


@pytest.mark.parametrize("error", FULL, ids=repr)
def test_a_full_gpu__the_cpu_finds_the_same_scores(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_jobs, "evaluate", on_cuda(error, evaluate, lambda o: o["device"]))
    side = (features(), np.repeat(np.arange(20), 15), CAMIDS)
    workers, threads = Pretended(2, "cuda:1"), torch.get_num_threads()
    first, second = workers.run(EvaluateJob("x/evaluate", (*side, *side), threads + 1))
    assert first.map == evaluate(*side, *side).map and second is None
    assert workers.notes() == [SCORES_BY_CPU] and torch.get_num_threads() == threads


@pytest.mark.parametrize("error", FULL, ids=repr)
def test_a_full_gpu__the_cpu_computes_the_block(error: Exception) -> None:
    def stage(shared: int, device: str, start: int, stop: int) -> tuple[str, int]:
        if device == "cuda" and start == 4:
            raise error
        return device, shared + start

    workers = Pretended(1, "cuda:1")
    values = stages_on(workers)("products", stage, [(0, 4), (4, 8)], 10)  # type: ignore[arg-type]
    assert values == [("cuda", 10), ("cpu", 14)] and workers.notes() == [LABELS_BY_CPU]


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: an illegal memory access"), ValueError("out of memory")]
)
def test_other_errors_are_raised(error: Exception) -> None:
    def stage(device: str, start: int, stop: int) -> None:
        raise error

    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        Pretended(1, "cuda").run(StageJob("x", stage, ((0, 1),), ()))


@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_blocks_are_dealt_out__values_come_in_their_order(number: int) -> None:
    blocks = [(7 * block, 7 * block + 7) for block in range(5)]

    def stage(shared: list[int], device: str, start: int, stop: int) -> tuple[list[int], int, int]:
        return shared, start, stop

    found = stages_on(Pretended(number))("x", stage, blocks, [3])  # type: ignore[arg-type]
    assert found == [([3], *block) for block in blocks]


def test_tasks_run_on_the_workers_own_gpu__and_are_signs_of_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    (worker,) = Pretended(1, "cuda:3").all
    seen = worker.watchdog._seen
    with WorkerThreads(worker, "x/estimate", 2, "cuda") as runner:
        assert runner.collect([runner.submit("stage", divmod, 7, 2)]) == [(3, 1)]
        first, second = runner.submit("stage", divmod, 7, 2, num_results=2, on_device=True)
        assert runner.collect([first, second]) == [3, 1]
    assert chosen == [torch.device("cuda:3")] * 2
    assert worker.watchdog._seen > seen
    assert worker.watchdog._where["stage"] == "x/estimate" and worker.watchdog._where["step"] == 2


def test_memory_is_given_back__also_what_refers_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reducer:
        pass

    reducer = Reducer()
    reducer.itself = reducer  # type: ignore[attr-defined]
    left, when_emptied = weakref.ref(reducer), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: when_emptied.append(left()))
    gc.disable()
    try:
        del reducer
        free_memory(torch.device("cpu"))
        assert when_emptied == []
        free_memory(torch.device("cuda"))
    finally:
        gc.enable()
    assert when_emptied == [None]


def test_labels_are_whole() -> None:
    """Stages, centroids and notes come with them."""
    (found,) = estimate_on_workers(Pretended(1), estimate_job(features()))  # type: ignore[arg-type]
    assert isinstance(found, PseudoLabels) and found.centroids.shape == (found.num_clusters, 16)
    assert "neighbours: refine" in found.stages
