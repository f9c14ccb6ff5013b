"""Scores of a model, by who reads its features: a Ray task on CPUs, a job of workers on GPUs."""

from dataclasses import dataclass
from typing import Any

import torch

from cluster.device import is_out_of_memory
from cluster.given_features import loaded
from cluster.ray_run import as_task, result_of
from daal.available_cpus import available_cpus
from daal.evaluation import EvaluationResult, evaluate
from pipelines.images.ingest import Images
from pipelines.run.feature_blocks import FeatureBlocks
from pipelines.run.feature_files import query_and_gallery
from pipelines.workers.group import Worker, Workers

BY_CPU = "the GPU's memory ran out; the CPU finds the same scores in more time"


def evaluate_features(
    stage: str, images: Images, features: FeatureBlocks, workers: Workers
) -> EvaluationResult:
    """Market protocol (`daal.evaluation.evaluate`) on the rows of the query and gallery splits.

    Raises:
        DataError: there is no query or no gallery image.
    """
    splits = images.table["split"].to_numpy(zero_copy_only=False)
    pids_N, camids_N = images.column("pid"), images.column("camid")
    sides: tuple[Any, ...] = ()
    for rows in query_and_gallery("the target", splits):
        sides += features.of(rows), pids_N[rows], camids_N[rows]
    num_threads = workers.resources.threads_per_task
    if workers.resources.use_gpu:
        found: EvaluationResult = workers.run(EvaluateJob(stage, sides, num_threads))[0]
        return found
    found = result_of(as_task(_on_cpu).options(name="evaluate").remote(num_threads, sides))
    return found


@dataclass(frozen=True)
class EvaluateJob:
    """Scores, computed by the first worker: its process has loaded CUDA already.

    sides: features (stored ones, or arrays), pids and camids of the query, then of the gallery.
    """

    stage: str
    sides: tuple[Any, ...]
    num_threads: int

    def run(self, worker: Worker) -> EvaluationResult | None:
        """On the CPU, with a note, if the GPU's memory runs out."""
        if worker.rank > 0:
            return None
        worker.reach(self.stage, 0)
        sides, before = list(map(loaded, self.sides)), torch.get_num_threads()
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


def _on_cpu(num_threads: int, sides: tuple[Any, ...]) -> EvaluationResult:
    torch.set_num_threads(min(num_threads, available_cpus()))
    return evaluate(*map(loaded, sides))
