"""Decoded pixels of a set's images, where there is room to keep them.

An image is decoded once and kept as uint8 in the object store, or decoded at each use if the images
don't fit. Kept pixels are blocks made by Ray tasks: each node fetches them once, its workers read
them in place, and Ray makes a lost block again. Workers may copy them to their device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from daal.config import Config, InputConfig
from daal.data.images import decode
from pipelines.images.ingest import Images
from pipelines.images.store import ImageStore
from pipelines.workers.group import Worker
from pipelines.workers.resources import Resources

BLOCK = 512  # images in a block
STORE_SHARE = 0.4  # of a node's object store that may hold kept pixels
DEVICE_SHARE = 0.25  # of a GPU's free memory that kept pixels of all sets may take


@dataclass(frozen=True)
class ImageSource:
    """Where workers find images: the bytes of all rows, pixels of those that are kept."""

    store: ImageStore
    blocks: tuple[ray.ObjectRef[Any], ...]  # uint8 (at most BLOCK, height, width, 3) each
    places_N: NDArray[np.int64]  # row of the set -> place among the kept images, -1: not kept

    def keeps(self, rows: NDArray[np.int64]) -> bool:
        return bool((self.places_N[rows] >= 0).all())


class Pixels:
    """The driver's side: decides which images are kept, set by set as they are asked for."""

    def __init__(self, config: Config, resources: Resources, say: Callable[[str], None]) -> None:
        self._mode = config.ray.images
        self._size = config.input
        self._room = int(STORE_SHARE * resources.node_store_bytes)
        self._say = say
        self._sources: dict[ImageStore, ImageSource] = {}

    def source(self, images: Images) -> ImageSource:
        """The images of a set; its training images are the first to be kept."""
        if images.store not in self._sources:
            self._sources[images.store] = self._keep(images)
        return self._sources[images.store]

    def _keep(self, images: Images) -> ImageSource:
        train = images.rows("train")
        others = np.setdiff1d(np.arange(len(images.table)), train)
        kept: list[NDArray[np.int64]] = []
        image_bytes = self._size.height * self._size.width * 3
        for rows in (train, others):
            need = len(rows) * image_bytes
            if self._mode != "jpeg" and (self._mode != "auto" or need <= self._room):
                self._room -= need
                kept.append(rows)
        rows = np.concatenate([*kept, np.empty(0, np.int64)])
        places_N = np.full(len(images.table), -1, np.int64)
        places_N[rows] = np.arange(len(rows))
        blocks = [
            _decode_block.options(name="decode").remote(images.store, part, self._size)
            for part in np.split(rows, np.arange(BLOCK, len(rows), BLOCK))
            if len(part)
        ]
        domain = images.table["domain"][0].as_py()
        self._say(
            f"{domain}: {len(rows)} of {len(places_N)} images kept decoded, "
            f"{len(rows) * image_bytes / 1e9:.2f} GB (ray.images={self._mode})"
        )
        return ImageSource(images.store, tuple(blocks), places_N)


class PixelReader:
    """A worker's side: kept pixels by row, from shared memory or the worker's device."""

    def __init__(
        self, source: ImageSource, device: torch.device, mode: str, device_room: float
    ) -> None:
        """`device_room`: bytes of the device that these pixels may take if `mode` is "auto"."""
        self.device = device
        self._places_N = source.places_N
        self._blocks: list[NDArray[np.uint8]] = ray.get(list(source.blocks))
        self._pin = device.type == "cuda"
        self._on_device: Tensor | None = None
        num_bytes = sum(block.nbytes for block in self._blocks)
        if self._pin and (mode == "device" or (mode == "auto" and num_bytes <= device_room)):
            shape = sum(map(len, self._blocks)), *self._blocks[0].shape[1:]
            self._on_device = torch.empty(shape, dtype=torch.uint8, device=device)
            for at, block in enumerate(self._blocks):
                self._on_device[at * BLOCK : at * BLOCK + len(block)] = torch.tensor(block)
            self._blocks = []

    @property
    def device_bytes(self) -> int:
        return 0 if self._on_device is None else self._on_device.nbytes

    @property
    def on_device(self) -> bool:
        return self._on_device is not None

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """uint8 (len(rows), height, width, 3): on the device, or in (pinned) host memory."""
        places = self._places_N[rows]
        if self._on_device is not None:
            index = torch.from_numpy(places).pin_memory()
            return self._on_device[index.to(self._on_device.device, non_blocking=True)]
        pixels = torch.empty(
            (len(rows), *self._blocks[0].shape[1:]), dtype=torch.uint8, pin_memory=self._pin
        )
        into = pixels.numpy()
        for at, place in enumerate(places.tolist()):
            into[at] = self._blocks[place // BLOCK][place % BLOCK]
        return pixels


def pixel_reader(worker: Worker, source: ImageSource, config: Config) -> PixelReader:
    """The reader of a set's kept pixels, made once for all jobs of a worker.

    All sets share the device's room; the first that is asked for takes it first.
    """
    key = source.store
    if key not in worker.kept:
        room = 0.0
        if worker.device.type == "cuda":
            readers = (kept for kept in worker.kept.values() if isinstance(kept, PixelReader))
            taken = sum(reader.device_bytes for reader in readers)
            free, _ = torch.cuda.mem_get_info(worker.device)  # beside what others hold there
            room = DEVICE_SHARE * (free + taken) - taken
        worker.kept[key] = PixelReader(source, worker.device, config.ray.images, room)
    return worker.kept[key]


def decode_rows(store: ImageStore, rows: NDArray[np.int64], size: InputConfig) -> NDArray[np.uint8]:
    """Pixels (len(rows), height, width, 3) of rows of a set."""
    pixels = np.empty((len(rows), size.height, size.width, 3), np.uint8)
    for at, data in enumerate(store.take(rows)):
        pixels[at] = decode(data.to_pybytes(), size.height, size.width)
    return pixels


_decode_block = ray.remote(num_cpus=1)(decode_rows)
