"""Using a trained model: features of a folder of images, scores of a features file."""

import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from daal.config import DatasetConfig
from daal.datasets import load_records
from daal.errors import ConfigError, DataError
from daal.evaluation import EvaluationResult, evaluate
from daal.load_config import apply_overrides, check_config
from daal.trained import MODEL_FIELDS, load_trained
from pipelines.extract import extract, features_table
from pipelines.feature_files import read_features
from pipelines.ingest import ingest
from pipelines.pixels import Images, Pixels
from pipelines.progress import Progress
from pipelines.run_folder import RunFolder
from pipelines.session import ray_session
from pipelines.workers import Workers


def extract_folder(
    folder: Path, root: str, layout: str, overrides: list[str], verbose: bool = False
) -> tuple[pa.Table, pa.Table]:
    """Features of every image under `root` by the model in the checkpoint `folder`, and the
    images that could not be read (QUARANTINE_TABLE).

    The network and the image size are those that the checkpoint was trained with.
    """
    # What the user has given is looked at before the checkpoint, and before workers hold the GPUs.
    apply_overrides({}, overrides)
    layouts = get_args(DatasetConfig.model_fields["layout"].annotation)
    if layout not in layouts:
        raise ConfigError(f"--layout {layout} is unknown; take one of {', '.join(layouts)}.")
    dataset = DatasetConfig.model_validate({"layout": layout, "root": root})
    load_records(dataset.layout, root)
    model = load_trained(folder)
    # How that run was laid over its cluster says nothing about the model, and not how this one is.
    values = model.config.model_dump(mode="json", include=set(MODEL_FIELDS))
    config = check_config(apply_overrides(values, overrides))
    progress = Progress(live=not verbose)
    with (
        ray_session(config.ray, verbose) as resources,
        tempfile.TemporaryDirectory() as scratch,
        Workers(config, RunFolder(scratch), resources, progress) as workers,
    ):
        table, quarantine = ingest(dataset, "target", config.seed)
        images = Images(table, ray.put(table))
        weights = {name: tensor.numpy() for name, tensor in model.network.state_dict().items()}
        pixels = Pixels(config, resources, progress.say)
        with progress.stage("extract"):
            features = extract("extract", images, config, weights, workers, pixels)
    return features_table(table, features), quarantine


def evaluate_file(path: Path) -> EvaluationResult:
    """Scores of a file that `daal extract` or a run wrote.

    Raises:
        DataError: the file isn't such a file, or nothing in it can be scored.
    """
    given = read_features(path)
    splits, pids, camids = given.splits, given.pids, given.camids
    if splits is None or pids is None or camids is None:
        named = {"split": splits, "pid": pids, "camid": camids}
        absent = ", ".join(name for name, column in named.items() if column is None)
        raise DataError(
            f"{path} can't be scored without {absent}; give a file that daal extract wrote of a "
            "data set with query and gallery."
        )
    sides: list[NDArray[Any]] = []
    for split in ("query", "gallery"):
        rows = np.flatnonzero(splits == split)
        if len(rows) == 0:
            raise DataError(
                f"{path} has no {split} rows, and scores need query and gallery; extract them from "
                "a data set that has both."
            )
        sides += [given.features_NC[rows], pids[rows], camids[rows]]
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
