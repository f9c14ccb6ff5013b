"""Line 3 of Algorithm 1: features of all images, in blocks of rows that workers take in turn.

Blocks and the batches in them follow from the number of rows alone, so that files have the same
bytes whatever the number of workers. A block's features leave its worker as soon as it is whole.

Shapes: M rows of a block, B of a batch, C channels of a feature.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
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
from pipelines.run import artefacts
from pipelines.run.feature_blocks import block_files, rows_of_block
from pipelines.run.folder import Entries, entry_of
from pipelines.training.train_state import Weights
from pipelines.workers.group import LOG_SECONDS, Worker, Workers

# By device: a GPU extracts 64 images faster than the host issues their operations. Powers of 2, so
# that batches fill blocks.
BATCH = {"cpu": 64, "cuda": 256}


def extract(
    stage: str,
    images: Images,
    config: Config,
    weights: Weights,
    workers: Workers,
    pixels: Pixels,
    rows: NDArray[np.int64] | None = None,
    folder: str | None = None,
) -> list[Any]:
    """Shared features of an image table, or of some of its rows (ascending) alone: a table
    (`pipelines.run.artefacts.features_table`) of each block. With `folder`, blocks are written
    there in the run folder, and their entries are returned.

    Raises:
        DataError: a feature isn't finite.
    """
    rows = np.arange(len(images.table)) if rows is None else rows
    known = ray.put(images.table.select(artefacts.KNOWN))
    job = ExtractJob(stage, config, pixels.source(images), known, rows, ray.put(weights), folder)
    blocks: dict[int, Any] = {}
    for part in workers.run(job):
        blocks |= part
    return [blocks[number] for number in sorted(blocks)]


def extract_into(
    folder: str,
    stage: str,
    images: Images,
    config: Config,
    weights: Weights,
    workers: Workers,
    pixels: Pixels,
    rows: NDArray[np.int64],
) -> Entries:
    """The files of `extract` in a folder of the run. Blocks that an interrupted extraction left are
    kept, if it followed from the same stages: a file beside them says from which."""
    run, mark = workers.folder, f"{folder}/made_from"
    inputs = run.inputs.encode()
    if not run.exists(mark) or run.read(mark) != inputs:
        run.delete_folder(folder)
        run.write(mark, inputs)
    entries = extract(stage, images, config, weights, workers, pixels, rows, folder)
    run.delete_file(mark)
    return dict(zip(block_files(folder, len(rows)), entries, strict=True))


@dataclass(frozen=True)
class ExtractJob:
    """Features of some rows (ascending) of a table. Large things in it are references into the
    object store."""

    stage: str
    config: Config
    source: ImageSource
    known: ray.ObjectRef[Any]  # pa.Table: what features files say of each image of the set
    rows: NDArray[np.int64]
    weights: ray.ObjectRef[Any]
    folder: str | None = None  # of the run folder; without one, tables are returned

    def run(self, worker: Worker) -> dict[int, Any]:
        """This worker's blocks by number, as `extract` returns them."""
        size = rows_of_block(len(self.rows))
        blocks = np.split(self.rows, range(size, len(self.rows), size)) if len(self.rows) else []
        done: dict[int, Any] = {}
        mine: list[int] = []
        for number in range(worker.rank, len(blocks), worker.world_size):
            if (entry := self._whole(worker, number, len(blocks[number]))) is not None:
                done[number] = entry
            else:
                mine.append(number)
        if not mine:
            return done
        is_kept = {number: self.source.keeps(blocks[number]) for number in mine}
        mine.sort(key=lambda number: not is_kept[number])
        size = min(size, BATCH[worker.device.type])
        batches = {n: np.split(blocks[n], range(size, len(blocks[n]), size)) for n in mine}
        kept = [batch for n in mine if is_kept[n] for batch in batches[n]]
        streamed = [batch for n in mine if not is_kept[n] for batch in batches[n]]
        features = self._features(worker, kept, streamed)
        known: pa.Table = ray.get(self.known)
        # At most two blocks are held: one is written while the next is computed.
        with ThreadPoolExecutor(1) as writer:
            written: Future[Any] | None = None
            for number in mine:
                features_MC = torch.cat([next(features) for _ in batches[number]]).numpy()
                if not np.isfinite(features_MC).all():
                    raise DataError(
                        "the network gives features that are not finite; its weights are damaged."
                    )
                table = artefacts.features_table(known.take(blocks[number]), features_MC)
                if written is not None:
                    written.result()
                written = writer.submit(self._leave, worker, number, table, done)
            assert written is not None
            written.result()
        return done

    def _features(
        self,
        worker: Worker,
        kept: list[NDArray[np.int64]],
        streamed: list[NDArray[np.int64]],
    ) -> Iterator[Tensor]:
        """float32 (B, C) of each batch of rows, on the host. A GPU works on the next one
        meanwhile."""
        loaded: Weights = ray.get(self.weights)
        tensors = {name: torch.tensor(array) for name, array in loaded.items()}
        model = TrainedModel(self.config, tensors)
        model.to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        batches = self._batches(worker, kept, streamed)
        if worker.device.type == "cuda":
            batches = ahead((pinned(images_BHWC, worker.device) for images_BHWC in batches), 2)
        num_images, begun = 0, time.monotonic()
        shown = begun
        earlier: HostCopy | None = None  # what a GPU may still be working on
        for number, images_BHWC in enumerate(batches):
            worker.reach(self.stage, number)
            images_BHWC = images_BHWC.to(worker.device, non_blocking=True)
            with (
                torch.inference_mode(),
                mixed_precision(worker.device, self.config.mixed_precision),
            ):
                features_BC = model(images_BHWC.permute(0, 3, 1, 2)).float()
            copy = HostCopy(features_BC)
            if earlier is not None:
                yield earlier.tensors()[0]
            earlier = copy
            num_images += len(features_BC)
            if worker.rank == 0 and (now := time.monotonic()) - shown > LOG_SECONDS:
                shown = now
                of_all = min(num_images * worker.world_size, len(self.rows))  # shares are equal
                worker.log({
                    "stage": self.stage, "extracted": of_all, "num_images": len(self.rows),
                    "extracted_per_s": round(of_all / (now - begun), 1),
                })  # fmt: skip
        if earlier is not None:
            yield earlier.tensors()[0]

    def _batches(
        self,
        worker: Worker,
        kept: list[NDArray[np.int64]],
        streamed: list[NDArray[np.int64]],
    ) -> Iterator[Tensor]:
        """uint8 (B, height, width, 3) of each batch of rows: kept images, then decoded ones."""
        if kept:
            reader = pixel_reader(worker, self.source, self.config)
            yield from map(reader.read, kept)
        if streamed:
            yield from streamed_rows(self.source, streamed, self.config.input)

    def _whole(self, worker: Worker, number: int, num_rows: int) -> Any:
        """The entry of a block that an interrupted extraction has left whole."""
        if self.folder is None:
            return None
        name = self._file(number)
        if not worker.folder.exists(name):
            return None
        data = worker.folder.read(name)
        try:
            return entry_of(data) if len(artefacts.read_table(data)) == num_rows else None
        except pa.ArrowException:
            return None

    def _leave(self, worker: Worker, number: int, table: pa.Table, done: dict[int, Any]) -> None:
        if self.folder is None:
            done[number] = table
            return
        data = artefacts.table_bytes(table)
        worker.folder.write(self._file(number), data)
        done[number] = entry_of(data)

    def _file(self, number: int) -> str:
        return block_files(str(self.folder), len(self.rows))[number]
