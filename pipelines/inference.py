"""Using a trained model: features of a folder of images, scores of a features file."""

import tempfile
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from daal import checkpoint
from daal.config import DatasetConfig
from daal.errors import CheckpointError, ConfigError, DataError
from daal.evaluation import EvaluationResult, evaluate
from daal.load_config import apply_overrides, check_config
from pipelines.extract import extract, features_array, features_table
from pipelines.ingest import ingest
from pipelines.pixels import Images, Pixels
from pipelines.progress import Progress
from pipelines.run_folder import RunFolder
from pipelines.session import ray_session
from pipelines.workers import Workers

HERE = ("out", "ray")  # sections that belong to a run, not to its model


def extract_folder(
    folder: Path, root: str, layout: str, overrides: list[str], verbose: bool = False
) -> tuple[pa.Table, pa.Table]:
    """Features of every image under `root` by the model in the checkpoint `folder`, and the
    images that could not be read (QUARANTINE_TABLE).

    The network and the image size are those that the checkpoint was trained with.
    """
    tensors, metadata = checkpoint.load(folder)
    if "config" not in metadata:
        raise CheckpointError(
            f"{folder} is not a checkpoint of a run: it does not say its configuration."
        )
    # How that run was laid over its cluster says nothing about the model, and not how this one is.
    trained = {name: part for name, part in metadata["config"].items() if name not in HERE}
    config = check_config(apply_overrides(trained, overrides))
    layouts = get_args(DatasetConfig.model_fields["layout"].annotation)
    if layout not in layouts:
        raise ConfigError(f"--layout {layout} is unknown; take one of {', '.join(layouts)}.")
    dataset = DatasetConfig.model_validate({"layout": layout, "root": root})
    progress = Progress()
    with (
        ray_session(config.ray, verbose) as resources,
        tempfile.TemporaryDirectory() as scratch,
        Workers(config, RunFolder(scratch), resources, progress) as workers,
    ):
        table, quarantine = ingest(dataset, "target", config.seed)
        images = Images(table, ray.put(table))
        weights = {name: tensor.numpy() for name, tensor in tensors.items()}
        pixels = Pixels(config, resources, progress.say)
        features = extract("extract", images, config, weights, workers, pixels)
    return features_table(table, features), quarantine


def evaluate_file(path: Path) -> EvaluationResult:
    """Scores of a file that `daal extract` or a run wrote.

    Raises:
        DataError: the file isn't such a file, or has no query or gallery rows.
    """
    try:
        table = pq.read_table(path)
        features_NC = features_array(table)
        split = table["split"].to_numpy(zero_copy_only=False)
        pids, camids = table["pid"].to_numpy(), table["camid"].to_numpy()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(
            f"{path} is not a features file (daal extract writes them): {error}"
        ) from error
    query, gallery = split == "query", split == "gallery"
    if not query.any() or not gallery.any():
        raise DataError(f"{path} has no query or no gallery rows; scores need both.")
    return evaluate(
        features_NC[query], pids[query], camids[query],
        features_NC[gallery], pids[gallery], camids[gallery],
    )  # fmt: skip
