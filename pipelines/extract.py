"""Line 3 of Algorithm 1: features of all images, each worker its share."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from daal.augment import normalise
from daal.config import Config, InputConfig
from daal.errors import DataError
from daal.network import DaalNetwork
from daal.step import mixed_precision
from pipelines.pixels import Images, ImageSource, Pixels, decode_rows
from pipelines.stream import ahead
from pipelines.train_loop import LOG_SECONDS, pixel_reader
from pipelines.train_state import Weights
from pipelines.workers import Worker, Workers

BATCHES_PER_BLOCK = 4  # a Ray Data task decodes this many batches


def extract(
    stage: str, images: Images, config: Config, weights: Weights, workers: Workers, pixels: Pixels
) -> NDArray[np.float32]:
    """Shared features (N, C) of an image table, in the rows' order.

    Raises:
        DataError: a feature isn't finite.
    """
    job = ExtractJob(stage, config, pixels.source(images), len(images.table), ray.put(weights))
    parts: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = workers.run(job)
    features_NC = np.empty((len(images.table), parts[0][1].shape[1]), np.float32)
    for rows, features in parts:
        features_NC[rows] = features
    if not np.isfinite(features_NC).all():
        raise DataError("the network gives features that are not finite; its weights are damaged.")
    return features_NC


@dataclass(frozen=True)
class ExtractJob:
    """Features of all rows of a table. Large things are references into the object store."""

    stage: str
    config: Config
    source: ImageSource
    num_images: int
    weights: ray.ObjectRef[Any]

    def run(self, worker: Worker) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """This worker's rows, and their features (len(rows), C)."""
        config = self.config
        # The checkpoint has all the weights, so the backbone's own are not read again.
        network = DaalNetwork(config.network.model_copy(update={"weights": "none"}))
        loaded: Weights = ray.get(self.weights)
        network.load_matching({name: torch.tensor(array) for name, array in loaded.items()})
        network.to(worker.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        autocast = mixed_precision(worker.device, config.mixed_precision)

        is_kept = self.source.places_N >= 0
        rows = np.concatenate([
            np.array_split(np.flatnonzero(chosen), worker.world_size)[worker.rank]
            for chosen in (is_kept, ~is_kept)
        ])  # fmt: skip
        features_NC = torch.empty((len(rows), network.num_features))
        batches = self._batches(worker, rows)
        if worker.device.type == "cuda":
            features_NC = features_NC.pin_memory()
            batches = ahead(batches, 2)
        at, begun = 0, time.monotonic()
        shown = begun
        for number, images_BHWC in enumerate(batches):
            worker.reach(self.stage, number)
            features_BC = _features(network, images_BHWC.to(worker.device, non_blocking=True),
                                    config.flip_test, autocast)  # fmt: skip
            # Not waited for: the next batch is on its way to the device meanwhile.
            features_NC[at : at + len(features_BC)].copy_(features_BC, non_blocking=True)
            at += len(features_BC)
            if worker.rank == 0 and (now := time.monotonic()) - shown > LOG_SECONDS:
                shown = now
                of_all = min(at * worker.world_size, self.num_images)  # shares are equal
                worker.log({
                    "stage": self.stage, "extracted": of_all, "num_images": self.num_images,
                    "extracted_per_s": round(of_all / (now - begun), 1),
                })  # fmt: skip
        if worker.device.type == "cuda":
            torch.cuda.synchronize()
        return rows, features_NC.numpy()

    def _batches(self, worker: Worker, rows: NDArray[np.int64]) -> Iterator[Tensor]:
        """uint8 (B, height, width, 3) of the rows: kept images first, then decoded ones."""
        size = self.config.ray.extract_batch
        num_kept = int((self.source.places_N[rows] >= 0).sum())
        if num_kept:
            reader = pixel_reader(worker, self.source, self.config)
            for first in range(0, num_kept, size):
                yield reader.read(rows[first : min(first + size, num_kept)])
        if num_kept < len(rows):
            yield from _decoded(self.source, rows[num_kept:], size, self.config.input)


def _decoded(
    source: ImageSource, rows: NDArray[np.int64], batch_size: int, size: InputConfig
) -> Iterator[Tensor]:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    num_blocks = -(-len(rows) // (BATCHES_PER_BLOCK * batch_size))
    dataset = ray.data.range(len(rows), override_num_blocks=num_blocks).map_batches(
        _Decoder(source.table, rows, size), batch_size=batch_size
    )
    for batch in dataset.iter_batches(batch_size=batch_size, batch_format="numpy"):
        yield torch.tensor(batch["pixels"])


@dataclass(frozen=True)
class _Decoder:
    table: ray.ObjectRef[Any]
    rows: NDArray[np.int64]
    size: InputConfig

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"pixels": decode_rows(self.table, self.rows[batch["id"]], self.size)}


@torch.inference_mode()
def _features(
    network: DaalNetwork, images_BHWC: Tensor, flip: bool, autocast: torch.autocast
) -> Tensor:
    images_BCHW = normalise(images_BHWC.permute(0, 3, 1, 2))
    with autocast:
        features_BC = network.extract(images_BCHW)
        if flip:
            features_BC = features_BC + network.extract(images_BCHW.flip(3))
    return F.normalize(features_BC, dim=1) if flip and network.unit_features else features_BC


def features_table(images: pa.Table, features: NDArray[np.float32]) -> pa.Table:
    """A features file's rows: what is known of each image, and its feature as a fixed-size list."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    return images.drop_columns(["image"]).append_column("feature", lists)


def features_array(table: pa.Table) -> NDArray[np.float32]:
    """The feature column as (N, C) float32."""
    column = table.column("feature").combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat.reshape(len(column), -1), dtype=np.float32)
