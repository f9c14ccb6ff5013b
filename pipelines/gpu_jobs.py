"""Pseudo-labels and scores on GPUs: jobs of the workers, which would otherwise wait meanwhile.

A worker's process has loaded CUDA and all libraries already, and its GPU is its own. Where a GPU's
memory runs out, the CPUs beside it give the same bits in more time, with a note.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from cluster.estimate import PseudoLabels, estimate_pseudo_labels
from cluster.out_of_memory import is_out_of_memory
from cluster.runner import Threads
from daal.available_cpus import available_cpus
from daal.config import ClusterConfig
from daal.errors import DaalError
from daal.evaluation import EvaluationResult, evaluate
from pipelines.workers import Worker, Workers

LABELS_BY_CPU = "The GPU's memory ran out; the CPU found the same labels in more time."
SCORES_BY_CPU = "the GPU's memory ran out; the CPU finds the same scores in more time"

Result = TypeVar("Result")


@dataclass(frozen=True)
class EstimateJob:
    """Pseudo-labels of each part of the body: a part is the work of one worker.

    features: a reference (N, C) for each part; to_source_NP: a column for each.
    """

    stage: str
    config: ClusterConfig
    features: tuple[ray.ObjectRef[Any], ...]
    eps: tuple[float | None, ...]
    camids_N: NDArray[np.integer]
    to_source_NP: NDArray[np.float32] | None
    num_threads: int

    def run(self, worker: Worker) -> dict[int, PseudoLabels | DaalError]:
        """This worker's parts. An error of ours is a result: others may be left to find it, and a
        run may keep its last labels, for which its workers must live."""
        parts = range(worker.rank, len(self.features), worker.world_size)
        return {part: _or_error(self._estimate, worker, part) for part in parts}

    def _estimate(self, worker: Worker, part: int) -> PseudoLabels:
        def on(device: str) -> PseudoLabels:
            config = self.config
            if device == "cpu" and config.backend == "cuml":
                config = config.model_copy(update={"backend": "components"})
            num_threads = min(self.num_threads, available_cpus())
            with WorkerThreads(worker, self.stage, num_threads, device) as runner:
                return estimate_pseudo_labels(
                    ray.get(self.features[part]),
                    config,
                    self.eps[part],
                    camids_N=self.camids_N,
                    source_N=None if self.to_source_NP is None else self.to_source_NP[:, part],
                    runner=runner,
                )

        found, on_cpu = _on_gpu_or_cpu(on, worker.device.type)
        return replace(found, notes=(*found.notes, LABELS_BY_CPU)) if on_cpu else found


@dataclass(frozen=True)
class StageJob:
    """A stage of an estimate that is too large for one worker: `function(*shared, device, start,
    stop)` of each row block. Shared values may be references."""

    stage: str
    function: Callable[..., Any]
    blocks: tuple[tuple[int, int], ...]
    shared: tuple[Any, ...]

    def run(self, worker: Worker) -> list[Any] | DaalError:
        """The values of this worker's blocks: every `world_size`th, from that of its rank on."""
        return _or_error(self._blocks, worker)

    def _blocks(self, worker: Worker) -> list[Any]:
        shared = [ray.get(x) if isinstance(x, ray.ObjectRef) else x for x in self.shared]
        values, was_full = [], False
        for number, block in enumerate(self.blocks[worker.rank :: worker.world_size]):
            worker.reach(self.stage, number)

            def on(device: str, block: tuple[int, int] = block) -> Any:
                return self.function(*shared, device, *block)

            value, on_cpu = _on_gpu_or_cpu(on, worker.device.type)
            values.append(value)
            was_full |= on_cpu
        if was_full:
            worker.log({"stage": self.stage, "note": LABELS_BY_CPU})
        return values


@dataclass(frozen=True)
class EvaluateJob:
    """Scores, by the first worker. sides: references of `pipelines.evaluate.both_sides`."""

    stage: str
    sides: tuple[ray.ObjectRef[Any], ...]
    num_threads: int

    def run(self, worker: Worker) -> EvaluationResult | None:
        if worker.rank > 0:
            return None
        worker.reach(self.stage, 0)
        sides = ray.get(list(self.sides))

        def on(device: str) -> EvaluationResult:
            return evaluate(*sides, device=device)

        before = torch.get_num_threads()
        torch.set_num_threads(min(self.num_threads, available_cpus()))
        try:
            found, on_cpu = _on_gpu_or_cpu(on, worker.device.type)
        finally:
            torch.set_num_threads(before)
        if on_cpu:
            worker.log({"stage": self.stage, "note": SCORES_BY_CPU})
        return found


class WorkerThreads(Threads):
    """Threads of a worker: on its own GPU, and each task is a sign of life of the worker."""

    def __init__(self, worker: Worker, of_job: str, num_threads: int, device: str) -> None:
        super().__init__(num_threads, device)
        self._worker, self._of_job = worker, of_job
        self._num_tasks = 0

    def submit(
        self, stage: str, function: Callable[..., Any], *arguments: Any, **options: Any
    ) -> Any:
        self._num_tasks += 1
        task = partial(self._run_task, self._num_tasks, function)
        return super().submit(stage, task, *arguments, **options)

    def _run_task(self, number: int, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._worker.device.type == "cuda":
            # The process sees all GPUs of its node, and a new thread begins on the first.
            torch.cuda.set_device(self._worker.device)
        self._worker.reach(self._of_job, number)
        return function(*arguments)


def estimate_on_workers(workers: Workers, job: EstimateJob) -> list[PseudoLabels]:
    """The labels of each part. Raises the first part's error."""
    found: dict[int, PseudoLabels | DaalError] = {}
    for parts in workers.run(job):
        found |= parts
    return _values([found[part] for part in range(len(job.features))])


def stages_on(workers: Workers) -> Callable[..., list[Any]]:
    """What `cluster.task_graph` needs to have stages done on the workers' GPUs."""

    def on_gpus(
        stage: str, function: Callable[..., Any], blocks: Sequence[tuple[int, int]], *shared: Any
    ) -> list[Any]:
        by_rank = _values(workers.run(StageJob(stage, function, tuple(blocks), shared)))
        values: list[Any] = [None] * len(blocks)
        for rank, found in enumerate(by_rank):
            values[rank :: len(by_rank)] = found
        return values

    return on_gpus


def _values(found: Sequence[Result | DaalError]) -> list[Result]:
    for value in found:
        if isinstance(value, DaalError):
            raise value
    return list(found)  # type: ignore[arg-type]


def _or_error(function: Callable[..., Result], *arguments: Any) -> Result | DaalError:
    try:
        return function(*arguments)
    except DaalError as error:
        return error


def _on_gpu_or_cpu(work: Callable[[str], Result], device: str) -> tuple[Result, bool]:
    """What `work(device)` returns, and whether a full GPU has left it to the CPU."""
    try:
        return work(device), False
    except Exception as error:
        if device == "cpu" or not is_out_of_memory(error):
            raise
    return work("cpu"), True  # after the error, which holds on to the GPU's tensors
