"""Scores of a features table: query against gallery, in one Ray task."""

from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from daal.errors import DataError
from daal.evaluation import EvaluationResult, evaluate
from pipelines.session import Resources


def evaluate_features(
    images: pa.Table, features_NC: NDArray[np.float32], resources: Resources
) -> EvaluationResult:
    """Market protocol (`daal.evaluation.evaluate`) on the rows of the query and gallery splits.

    Raises:
        DataError: there is no query or no gallery image.
    """
    split = images["split"].to_numpy(zero_copy_only=False)
    pids, camids = images["pid"].to_numpy(), images["camid"].to_numpy()
    arrays = []
    for name in ("query", "gallery"):
        rows = np.flatnonzero(split == name)
        if len(rows) == 0:
            raise DataError(f"there is no {name} image; scores need a query and a gallery split.")
        arrays += [features_NC[rows], pids[rows], camids[rows]]
    task: Any = ray.remote(evaluate).options(
        name="evaluate",
        num_cpus=resources.cpus_beside_workers,
        num_gpus=resources.gpus_per_task,
    )
    device = "cuda" if resources.use_gpu else "cpu"
    result: EvaluationResult = ray.get(task.remote(*map(ray.put, arrays), device=device))
    return result
