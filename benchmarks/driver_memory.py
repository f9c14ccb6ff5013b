"""Memory of the driver while features are labelled, trained on and scored.

    python -m benchmarks.driver_memory [--num 30000 90000] [--dim 512] [--json]

Features are drawn by Ray tasks, which write them into a run folder as workers do. Then come the
steps of an iteration that use them: pseudo-labels by many tasks, centroids and what Eq. 4 needs
for a training, scores. A row has as `figure` how many MB the PSS of the driver grew by,
at its peak, and as `baseline` the MB of all features.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"  # a Ray of our own, on loopback, gone in minutes

import numpy as np
import psutil
import pyarrow as pa
import ray

from benchmarks.small_run import scratch_folder
from benchmarks.tables import parse, parser_of, tell
from cluster.ray_run import as_task
from daal.config import ClusterConfig
from pipelines.images.ingest import Images
from pipelines.run import artefacts
from pipelines.run.feature_blocks import FeatureBlocks, block_files, rows_of_block
from pipelines.run.folder import Entry, RunFolder, entry_of
from pipelines.training.evaluate import evaluate_features
from pipelines.training.fit import with_features
from pipelines.training.pseudo_labels import ToLabel, label_images
from pipelines.training.train_batch import Labels

IMAGES_OF_ID = 16
CONFIG = ClusterConfig(q=10.35)


def table_of(number: int) -> pa.Table:
    """What a run knows of so many images: of every five, four are for training."""
    rows = np.arange(number)
    splits = np.array(["train"] * 4 + ["gallery"])[rows % 5]
    splits[rows % 40 == 39] = "query"
    return pa.table({
        "path": [f"{row}.jpg" for row in rows], "pid": 1 + rows // IMAGES_OF_ID,
        "camid": rows % 6, "split": splits, "domain": ["target"] * number,
    })  # fmt: skip


@ray.remote(num_cpus=1)
def draw(folder: RunFolder, name: str, known: pa.Table, dim: int) -> Entry:
    """A block's file."""
    features = np.empty((len(known), dim), np.float32)
    for row, (path, pid) in enumerate(zip(known["path"], known["pid"], strict=True)):
        noise = np.random.default_rng(int(path.as_py()[:-4])).standard_normal(dim)
        features[row] = np.random.default_rng([pid.as_py()]).standard_normal(dim) + 0.8 * noise
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    data = artefacts.table_bytes(artefacts.features_table(known, features))
    folder.write(name, data)
    return entry_of(data)


@contextmanager
def peak_of_driver() -> Iterator[list[float]]:
    """How many MB this process's PSS grows by, at most."""
    process, over = psutil.Process(), threading.Event()
    before, peak = process.memory_full_info().pss, [0.0]

    def watch() -> None:
        while not over.wait(0.1):
            peak[0] = max(peak[0], (process.memory_full_info().pss - before) / 1e6)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def measure(number: int, dim: int, folder: RunFolder) -> Iterator[dict[str, Any]]:
    images = Images(table_of(number), None)  # type: ignore[arg-type]
    size, known = rows_of_block(number), images.table
    drawn = {
        name: draw.remote(folder, name, known.slice(block * size, size).combine_chunks(), dim)
        for block, name in enumerate(block_files(f"features-{number}", number))
    }
    entries = {name: ray.get(entry) for name, entry in drawn.items()}
    features = FeatureBlocks(folder, entries, np.arange(number))
    rows = images.rows("train")
    ids = images.column("pid")[rows], images.column("camid")[rows]
    workers: Any = SimpleNamespace(
        resources=SimpleNamespace(use_gpu=False, threads_per_task=len(os.sched_getaffinity(0)))
    )

    def row(step: str, peak: list[float]) -> dict[str, Any]:
        figure, baseline = round(peak[0], 1), number * dim * 4 / 1e6
        return {
            "name": f"{step}, {number:,} images", "figure": figure, "baseline": baseline,
            "ratio": round(figure / baseline, 3),
        }  # fmt: skip

    with peak_of_driver() as peak:
        labels_TP, _ = label_images(ToLabel([features.of(rows)], *ids), CONFIG, [], workers)
    yield row("pseudo-labels", peak)
    with peak_of_driver() as peak:
        labels_N = np.full(number, -1)
        labels_N[rows] = labels_TP[:, 0]
        labels = Labels(np.empty(0, np.int64), 0, labels_N, feature_rows=rows)
        task = as_task(with_features).options(num_returns=2)
        ray.get(task.remote(labels, features.of(rows), True)[1])
    yield row("labels for a training", peak)
    with peak_of_driver() as peak:
        evaluate_features("evaluate", images, features, workers)
    yield row("scores", peak)


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("--num", type=int, nargs="+", default=[30_000, 90_000], help="images")
    options.add_argument("--dim", type=int, default=512)
    given = parse(options)
    ray.init(
        address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False
    )
    try:
        with scratch_folder() as scratch:
            folder = RunFolder(str(Path(scratch) / "run"))
            for warm in (3_000, 25_000):  # imports, and Ray's workers
                list(measure(warm, 16, folder))
            rows = [row for number in given.num for row in measure(number, given.dim, folder)]
    finally:
        ray.shutdown()
    tell(given, "Memory of the driver, MB", rows)


if __name__ == "__main__":
    main()
