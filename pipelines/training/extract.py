"""Line 3 of Algorithm 1: features of all images, each worker its share."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from daal.config import Config
from daal.errors import DataError
from daal.host_copy import HostCopy
from daal.precision import mixed_precision
from daal.trained_model import TrainedModel
from pipelines.images.ingest import Images
from pipelines.images.pixels import ImageSource, Pixels, pixel_reader
from pipelines.images.prefetch import ahead, pinned
from pipelines.images.stream import streamed_rows
from pipelines.training.train_state import Weights
from pipelines.workers.group import LOG_SECONDS, Worker, Workers

# By device: a GPU extracts 64 images faster than the host issues their operations.
BATCH = {"cpu": 64, "cuda": 256}


def extract(
    stage: str,
    images: Images,
    config: Config,
    weights: Weights,
    workers: Workers,
    pixels: Pixels,
    rows: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Shared features (N, C) of an image table, or of N of its rows alone, in the rows' order.

    Raises:
        DataError: a feature isn't finite.
    """
    rows = np.arange(len(images.table)) if rows is None else rows
    job = ExtractJob(stage, config, pixels.source(images), rows, ray.put(weights))
    parts: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = workers.run(job)
    features_NC = np.empty((len(rows), parts[0][1].shape[1]), np.float32)
    for some, features in parts:
        features_NC[np.searchsorted(rows, some)] = features
    if not np.isfinite(features_NC).all():
        raise DataError("the network gives features that are not finite; its weights are damaged.")
    return features_NC


@dataclass(frozen=True)
class ExtractJob:
    """Features of some rows (ascending) of a table. Large things in it are references into the
    object store."""

    stage: str
    config: Config
    source: ImageSource
    rows: NDArray[np.int64]
    weights: ray.ObjectRef[Any]

    def run(self, worker: Worker) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """This worker's rows, and their features (len(rows), C)."""
        config = self.config
        loaded: Weights = ray.get(self.weights)
        tensors = {name: torch.tensor(array) for name, array in loaded.items()}
        model = TrainedModel(config, tensors)
        model.to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        autocast = mixed_precision(worker.device, config.mixed_precision)

        is_kept = self.source.places_N[self.rows] >= 0
        rows = np.concatenate([
            np.array_split(self.rows[chosen], worker.world_size)[worker.rank]
            for chosen in (is_kept, ~is_kept)
        ])  # fmt: skip
        features_NC = torch.empty((len(rows), model.network.num_features))
        batches = self._batches(worker, rows)
        if worker.device.type == "cuda":
            batches = ahead((pinned(images_BHWC, worker.device) for images_BHWC in batches), 2)
        at, begun = 0, time.monotonic()
        shown = begun
        earlier: tuple[HostCopy, int] | None = None  # what a GPU may still be working on
        for number, images_BHWC in enumerate(batches):
            worker.reach(self.stage, number)
            images_BHWC = images_BHWC.to(worker.device, non_blocking=True)
            with torch.inference_mode(), autocast:
                features_BC = model(images_BHWC.permute(0, 3, 1, 2))
            copy = HostCopy(features_BC)
            if earlier is not None:
                _put(features_NC, *earlier)
            earlier = copy, at
            at += len(features_BC)
            if worker.rank == 0 and (now := time.monotonic()) - shown > LOG_SECONDS:
                shown = now
                of_all = min(at * worker.world_size, len(self.rows))  # shares are equal
                worker.log({
                    "stage": self.stage, "extracted": of_all, "num_images": len(self.rows),
                    "extracted_per_s": round(of_all / (now - begun), 1),
                })  # fmt: skip
        if earlier is not None:
            _put(features_NC, *earlier)
        return rows, features_NC.numpy()

    def _batches(self, worker: Worker, rows: NDArray[np.int64]) -> Iterator[Tensor]:
        """uint8 (B, height, width, 3) of the rows: kept images first, then decoded ones."""
        size = BATCH[worker.device.type]
        num_kept = int((self.source.places_N[rows] >= 0).sum())
        if num_kept:
            reader = pixel_reader(worker, self.source, self.config)
            for first in range(0, num_kept, size):
                yield reader.read(rows[first : min(first + size, num_kept)])
        if num_kept < len(rows):
            yield from streamed_rows(self.source, rows[num_kept:], size, self.config.input)


def _put(features_NC: Tensor, copy: HostCopy, at: int) -> None:
    (features_BC,) = copy.tensors()
    features_NC[at : at + len(features_BC)] = features_BC
