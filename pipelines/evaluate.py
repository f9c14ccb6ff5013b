"""Scores of features, query against gallery: of a run in a Ray task, of a file right here."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from cluster.task_graph import as_task
from daal.available_cpus import available_cpus
from daal.errors import DataError
from daal.evaluation import EvaluationResult, evaluate
from pipelines.feature_files import read_features
from pipelines.resources import Resources


def evaluate_features(
    images: pa.Table, features_NC: NDArray[np.float32], resources: Resources
) -> EvaluationResult:
    """Market protocol (`daal.evaluation.evaluate`) on the rows of the query and gallery splits.

    Raises:
        DataError: there is no query or no gallery image.
    """
    splits = images["split"].to_numpy(zero_copy_only=False)
    ids = images["pid"].to_numpy(), images["camid"].to_numpy()
    sides = both_sides("the target", splits, features_NC, *ids)
    task = as_task(_evaluate).options(name="evaluate")
    return ray.get(task.remote(resources.threads_per_task, *map(ray.put, sides)))


def _evaluate(num_threads: int, *sides: NDArray[Any]) -> EvaluationResult:
    torch.set_num_threads(min(num_threads, available_cpus()))
    return evaluate(*sides, device="cpu")


def evaluate_file(path: Path) -> EvaluationResult:
    """Scores of a file that `daal extract` or a run wrote.

    Raises:
        DataError: the file isn't such a file, or nothing in it can be scored.
    """
    given = read_features(path, needed=("split", "pid", "camid"))
    splits, pids, camids = given.splits, given.pids, given.camids
    if splits is None or pids is None or camids is None:
        named = {"split": splits, "pid": pids, "camid": camids}
        absent = ", ".join(name for name, column in named.items() if column is None)
        raise DataError(
            f"{path} can't be scored without {absent}; give a file that daal extract wrote of a "
            "data set with query and gallery."
        )
    sides = both_sides(str(path), splits, given.features_NC, pids, camids)
    try:
        scores = evaluate(*sides)
    except DataError as error:
        raise DataError(f"{path}: {error}.") from error
    if scores.num_valid_queries == 0:
        raise DataError(
            f"{path} has no query with an image of the same pid and another camera in its gallery, "
            "so nothing can be scored; correct its pids and camids."
        )
    return scores


def both_sides(
    what: str,
    splits: NDArray[Any],
    features_NC: NDArray[np.float32],
    pids: NDArray[np.integer],
    camids: NDArray[np.integer],
) -> list[NDArray[Any]]:
    """Features, pids and camids of the query rows, then of the gallery's."""
    sides: list[NDArray[Any]] = []
    for split in ("query", "gallery"):
        rows = np.flatnonzero(splits == split)
        if len(rows) == 0:
            raise DataError(
                f"{what} has no {split} rows, and scores need query and gallery; extract them from "
                "a data set that has both."
            )
        sides += [features_NC[rows], pids[rows], camids[rows]]
    return sides
