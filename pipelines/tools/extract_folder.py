"""Features of a folder of images by a trained model, on Ray."""

import os
import tempfile
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from daal.config import ANY_LAYOUT, MODEL, DatasetConfig, Layout, marked
from daal.data.layouts import any_images, check_characters
from daal.data.sources import load_set, roots_of
from daal.errors import ConfigError
from daal.load_config import Origins, apply_overrides, check_config, flat
from daal.trained_model import load_trained
from pipelines.images.ingest import read_images
from pipelines.images.pixels import Pixels
from pipelines.images.store import stores_folder
from pipelines.run.folder import RunFolder
from pipelines.show.progress import Progress
from pipelines.training.extract import extract
from pipelines.workers.group import Workers
from pipelines.workers.session import ray_session


def extract_folder(
    folder: Path, root: str, layout: str, overrides: list[str], verbose: bool = False
) -> tuple[pa.Table, pa.Table]:
    """Features of every image under `root` by the model in the checkpoint `folder`, and the
    images that could not be read (QUARANTINE_TABLE).

    The network and the image size are those of the checkpoint. With the layout "any", a row has
    only a path and a feature. Raises DataError if the folder doesn't have this layout, or more
    images than `max_bad_share` are unreadable.
    """
    # Check the user's input before the checkpoint is read and before workers hold GPUs.
    origins: Origins = {}
    apply_overrides({}, overrides, origins)
    records, roots = _records(layout, root)
    model = load_trained(folder)
    # Only the model's settings: the run's workers and cluster don't matter here.
    values = model.config.model_dump(mode="json", include=marked(MODEL))
    config = check_config(for_any_workers(apply_overrides(values, overrides)), origins)
    progress = Progress(live=not verbose)
    with (
        ray_session(config.ray, verbose) as resources,
        tempfile.TemporaryDirectory() as scratch,
        Workers(config, RunFolder(scratch), resources, progress) as workers,
    ):
        stores = stores_folder(config.store, f"{scratch}/run")
        images, quarantine = read_images(roots, "target", records, stores, config.max_bad_share)
        weights = {name: tensor.numpy() for name, tensor in model.network.state_dict().items()}
        pixels = Pixels(config, resources, progress.say)
        with progress.stage("extract"):
            blocks = extract("extract", images, config, weights, workers, pixels)
    rows = pa.concat_tables(blocks.values())
    return rows.select(["path", "feature"]) if layout == ANY_LAYOUT else rows, quarantine


def for_any_workers(values: dict[str, Any]) -> dict[str, Any]:
    """The settings with training batches that any number of workers divides: nothing is trained."""
    number = flat(values).get("ray.num_workers")
    if not isinstance(number, int) or number < 1:  # the default, or a value that will be refused
        return values
    batches = {
        "pretrain": {"batch_source": number},
        "adapt": {"batch_source": number, "batch_target": number},
    }
    return batches | values


def _records(layout: str, root: str) -> tuple[pa.Table, list[str]]:
    """Images, and the folders that they are under."""
    if layout == ANY_LAYOUT:
        records = any_images(root)
        check_characters(Path(root), records["path"].to_pylist())
        return records, [os.path.abspath(root)]
    for known in get_args(Layout):
        if layout == known:
            settings = DatasetConfig(layout=known, root=root)
            return load_set(settings), roots_of(settings)
    raise ConfigError(
        f"--layout {layout} is unknown; take one of {', '.join(get_args(Layout))}, or "
        f"{ANY_LAYOUT} for a folder of any images."
    )
