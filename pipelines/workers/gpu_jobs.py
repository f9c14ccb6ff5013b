"""Pseudo-labels and scores on GPUs: jobs of the workers, which would otherwise be idle.

A worker's process has loaded CUDA and all libraries already, and it has a GPU.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch

from cluster.device import is_out_of_memory
from cluster.ray_run import OnGpus
from daal.available_cpus import available_cpus
from daal.errors import DaalError
from daal.evaluation import EvaluationResult, evaluate
from pipelines.workers.group import Worker, Workers

SCORES_BY_CPU = "the GPU's memory ran out; the CPU finds the same scores in more time"


@dataclass(frozen=True)
class StageJob:
    """A stage of pseudo-labels: `function(*shared, device, start, stop)` of each row block."""

    stage: str
    function: Callable[..., Any]
    blocks: tuple[tuple[int, int], ...]
    shared: tuple[ray.ObjectRef[Any], ...]

    def run(self, worker: Worker) -> list[Any] | DaalError:
        """The values of this worker's blocks: number rank, rank + world_size, ...

        A DaalError is returned: raising it would end the workers, and a run without new labels may
        keep its last ones.
        """
        mine = self.blocks[worker.rank :: worker.world_size]
        if not mine:
            return []
        shared = ray.get(list(self.shared))
        values = []
        with _torch_threads(torch.get_num_threads()):
            for number, block in enumerate(mine):
                worker.reach(self.stage, number)
                try:
                    values.append(self.function(*shared, worker.device.type, *block))
                except DaalError as error:
                    return error
        return values


def stages_on(workers: Workers) -> OnGpus:
    """For `cluster.ray_run.estimate_on_ray`: the workers' GPUs."""

    def on_gpus(
        stage: str, function: Callable[..., Any], blocks: Sequence[tuple[int, int]], *shared: Any
    ) -> list[Any]:
        # A worker without a block doesn't fetch them.
        references = tuple(x if isinstance(x, ray.ObjectRef) else ray.put(x) for x in shared)
        by_rank = workers.run(StageJob(stage, function, tuple(blocks), references))
        values: list[Any] = [None] * len(blocks)
        for rank, found in enumerate(by_rank):
            if isinstance(found, DaalError):
                raise found
            values[rank :: len(by_rank)] = found
        return values

    return on_gpus


@dataclass(frozen=True)
class EvaluateJob:
    """Scores, computed by the first worker.

    sides: references to the arrays of `pipelines.training.evaluate.both_sides`.
    """

    stage: str
    sides: tuple[ray.ObjectRef[Any], ...]
    num_threads: int

    def run(self, worker: Worker) -> EvaluationResult | None:
        """On the CPU, with a note, if the GPU's memory runs out."""
        if worker.rank > 0:
            return None
        worker.reach(self.stage, 0)
        sides, device = ray.get(list(self.sides)), worker.device.type
        with _torch_threads(min(self.num_threads, available_cpus())):
            try:
                return evaluate(*sides, device=device)
            except Exception as error:
                if device == "cpu" or not is_out_of_memory(error):
                    raise
            worker.log({"stage": self.stage, "note": SCORES_BY_CPU})
            return evaluate(*sides, device="cpu")


@contextmanager
def _torch_threads(number: int) -> Iterator[None]:
    """Inside, torch uses this number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
