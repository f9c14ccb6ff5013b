"""Scores of a model, by who reads its features: a Ray task on CPUs, a job of workers on GPUs."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.device import is_out_of_memory
from cluster.given_features import Features, loaded
from cluster.ray_run import as_task, result_of
from daal.available_cpus import available_cpus
from daal.evaluation import EvaluationResult, evaluate
from pipelines.images.ingest import Images
from pipelines.run.feature_blocks import FeatureBlocks
from pipelines.run.feature_files import query_and_gallery
from pipelines.workers.group import Worker, Workers

BY_CPU = "the GPU's memory ran out; the CPU finds the same scores in more time"


class Side(NamedTuple):
    """Query or gallery, of M images."""

    features: Features
    pids_M: NDArray[np.int64]
    camids_M: NDArray[np.int64]


def evaluate_features(
    stage: str, images: Images, features: FeatureBlocks, workers: Workers
) -> EvaluationResult:
    """Market protocol (`daal.evaluation.evaluate`) on the rows of the query and gallery splits.

    Raises:
        DataError: there is no query or no gallery image.
    """
    splits = images.table["split"].to_numpy(zero_copy_only=False)
    pids_N, camids_N = images.column("pid"), images.column("camid")
    query, gallery = (
        Side(features.of(rows), pids_N[rows], camids_N[rows])
        for rows in query_and_gallery("the target", splits)
    )
    num_threads = workers.resources.threads_per_task
    if workers.resources.use_gpu:
        found: EvaluationResult = workers.run(EvaluateJob(stage, query, gallery, num_threads))[0]
        return found
    task = as_task(_on_cpu).options(name="evaluate")
    found = result_of(task.remote(query, gallery, num_threads))
    return found


@dataclass(frozen=True)
class EvaluateJob:
    """Scores, computed by the first worker: its process has loaded CUDA already."""

    stage: str
    query: Side
    gallery: Side
    num_threads: int

    def run(self, worker: Worker) -> EvaluationResult | None:
        """On the CPU, with a note, if the GPU's memory runs out."""
        if worker.rank > 0:
            return None
        worker.reach(self.stage, 0)
        before = torch.get_num_threads()
        torch.set_num_threads(min(self.num_threads, available_cpus()))
        try:
            return _scores(self.query, self.gallery, worker.device.type)
        except Exception as error:
            if worker.device.type == "cpu" or not is_out_of_memory(error):
                raise
            worker.log({"stage": self.stage, "note": BY_CPU})
            return _scores(self.query, self.gallery)
        finally:
            torch.set_num_threads(before)  # of the next training


def _on_cpu(query: Side, gallery: Side, num_threads: int) -> EvaluationResult:
    torch.set_num_threads(min(num_threads, available_cpus()))
    return _scores(query, gallery)


def _scores(query: Side, gallery: Side, device: str = "cpu") -> EvaluationResult:
    sides = [(loaded(side.features), side.pids_M, side.camids_M) for side in (query, gallery)]
    return evaluate(*sides[0], *sides[1], device=device)
