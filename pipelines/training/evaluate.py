"""Scores of a model: a Ray task on CPUs, a job of the workers on GPUs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from cluster.device import is_out_of_memory
from daal.available_cpus import available_cpus
from daal.evaluation import EvaluationResult, evaluate
from pipelines.run.feature_files import query_and_gallery
from pipelines.workers.group import Worker, Workers

BY_CPU = "the GPU's memory ran out; the CPU finds the same scores in more time"


def evaluate_features(
    stage: str, images: pa.Table, features_NC: NDArray[np.float32], workers: Workers
) -> EvaluationResult:
    """Market protocol (`daal.evaluation.evaluate`) on the rows of the query and gallery splits.

    Raises:
        DataError: there is no query or no gallery image.
    """
    splits = images["split"].to_numpy(zero_copy_only=False)
    ids = images["pid"].to_numpy(), images["camid"].to_numpy()
    sides = tuple(map(ray.put, query_and_gallery("the target", splits, features_NC, *ids)))
    num_threads = workers.resources.threads_per_task
    if workers.resources.use_gpu:
        found: EvaluationResult = workers.run(EvaluateJob(stage, sides, num_threads))[0]
        return found
    return ray.get(_on_cpu.options(name="evaluate").remote(num_threads, *sides))


@dataclass(frozen=True)
class EvaluateJob:
    """Scores, computed by the first worker: its process has loaded CUDA already.

    sides: references to the arrays of `query_and_gallery`.
    """

    stage: str
    sides: tuple[ray.ObjectRef[Any], ...]
    num_threads: int

    def run(self, worker: Worker) -> EvaluationResult | None:
        """On the CPU, with a note, if the GPU's memory runs out."""
        if worker.rank > 0:
            return None
        worker.reach(self.stage, 0)
        sides, before = ray.get(list(self.sides)), torch.get_num_threads()
        torch.set_num_threads(min(self.num_threads, available_cpus()))
        try:
            return evaluate(*sides, device=worker.device.type)
        except Exception as error:
            if worker.device.type == "cpu" or not is_out_of_memory(error):
                raise
            worker.log({"stage": self.stage, "note": BY_CPU})
            return evaluate(*sides, device="cpu")
        finally:
            torch.set_num_threads(before)  # of the next training


@ray.remote(num_cpus=1)
def _on_cpu(num_threads: int, *sides: NDArray[Any]) -> EvaluationResult:
    torch.set_num_threads(min(num_threads, available_cpus()))
    return evaluate(*sides)
