"""What the benchmarks of training, extraction and iterations share: drawn images, a small run."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ["RAY_AUTH_MODE"] = "disabled"  # a Ray of our own, on loopback, gone in minutes

import ray
import ray.data

from benchmarks.small_run import scratch_folder
from daal.config import Config
from daal.drawn.domains import draw_domains
from daal.load_config import load_config
from daal.nn.network import DaalNetwork
from pipelines.images.ingest import Images, ingest
from pipelines.images.pixels import Pixels
from pipelines.run.folder import RunFolder
from pipelines.show.progress import Progress
from pipelines.training.fit import Trainer, class_labels
from pipelines.training.train_batch import Labels
from pipelines.workers.group import Workers
from pipelines.workers.session import ray_session, silence_ray_data


@contextmanager
def drawn_run(size: tuple[int, int], num_train_ids: int, settings: list[str]) -> Iterator["Run"]:
    """A local Ray and two drawn domains of images (height, width), for one benchmark."""
    with scratch_folder() as scratch:
        draw_domains(
            Path(scratch), num_train_ids=num_train_ids, num_test_ids=2, size=size,
            workers=os.cpu_count() or 1,
        )  # fmt: skip
        config = load_config(
            None,
            [
                f"source.root={scratch}/source", f"target.root={scratch}/target",
                f"out={scratch}/run", f"input.height={size[0]}", f"input.width={size[1]}",
                "network.weights=none", "augment.pad=5", "mixed_precision=false", *settings,
            ],
        )  # fmt: skip
        ray.init(address="local", num_cpus=8, include_dashboard=False,
                 logging_level=logging.ERROR, log_to_driver=False)  # fmt: skip
        silence_ray_data()
        try:
            yield Run(config)
        finally:
            ray.shutdown()


class Run:
    """A configuration with its images; groups of workers for it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.images: dict[str, Images] = {}
        for domain, _ in config.domains():
            self.images[domain], _ = ingest(config, domain)

    def image_bytes(self, domain: str) -> list[bytes]:
        images = self.images[domain]
        return [data.to_pybytes() for data in images.store.take(np.arange(len(images.table)))]

    @contextmanager
    def group(self, **changes: Any) -> Iterator["Group"]:
        """Workers with `ray` settings changed; started by their first job."""
        config = self.config.model_copy(update={"ray": self.config.ray.model_copy(update=changes)})
        figures: list[dict[str, Any]] = []
        progress = Progress(figures.append, quiet=True)
        with (
            ray_session(config.ray) as resources,
            scratch_folder() as scratch,
            Workers(config, RunFolder(scratch), resources, progress) as workers,
        ):
            pixels = Pixels(config, resources, lambda text: None)
            trainer = Trainer(config, workers, pixels, progress)
            yield Group(self, config, workers, pixels, trainer, figures)

    def labels(self, num_clusters: int) -> Labels:
        """Drawn features and clusters of the target's training images."""
        channels = DaalNetwork(self.config.network).num_features
        rng = np.random.default_rng(0)
        target = self.images["target"]
        features = rng.standard_normal((len(target.table), channels)).astype(np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        labels = np.full(len(features), -1)
        rows = target.rows("train")
        labels[rows] = np.arange(len(rows)) % num_clusters
        centroids = np.stack([features[labels == k].mean(0) for k in range(num_clusters)])
        source = class_labels(self.images["source"])[0]
        return Labels(source.source_N, source.num_source_ids, labels, features, centroids)


@dataclass(frozen=True)
class Group:
    """A group of workers and what it takes to give it jobs."""

    run: Run
    config: Config
    workers: Workers
    pixels: Pixels
    trainer: Trainer
    figures: list[dict[str, Any]]

    def adapt(self, stage: str, labels: Labels) -> dict[str, float]:
        """One fit from random weights; where rank 0's time went (FitTimes)."""
        assert labels.features_NC is not None and labels.pseudo_labels_N is not None
        target = self.run.images["target"]
        self.trainer.adapt(
            stage, 1, self.run.images["source"], target,
            labels.features_NC[target.rows("train")], labels.pseudo_labels_N[:, None], {},
        )  # fmt: skip
        return next(row["times"] for row in reversed(self.figures) if "times" in row)
