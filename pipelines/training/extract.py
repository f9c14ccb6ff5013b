"""Line 3 of Algorithm 1: features of all images, in blocks of rows that workers take in turn.

Blocks and the batches in them follow from the number of rows alone, so that files have the same
bytes whatever the number of workers. A block's features leave its worker as soon as it is whole.

Shapes: M rows of a block, B of a batch, C channels of a feature.
"""

import time
from collections.abc import Iterator, Sequence
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
from pipelines.run.folder import Entry, entry_of
from pipelines.training.train_state import Weights
from pipelines.workers.group import LOG_SECONDS, Worker, Workers

# By device: a GPU extracts 64 images faster than the host issues their operations. Powers of 2, so
# that batches fill blocks.
BATCH = {"cpu": 64, "cuda": 256}
Rows = NDArray[np.int64]


def extract(
    stage: str,
    images: Images,
    config: Config,
    weights: Weights,
    workers: Workers,
    pixels: Pixels,
    rows: Rows | None = None,
    folder: str = "",
) -> dict[str, Any]:
    """Shared features of an image table, or of some of its rows (ascending): by the name of each
    block, a table (`pipelines.run.artefacts.features_table`).

    With `folder`, workers write the tables there in the run folder, and the files' entries are
    returned. Blocks that an interrupted extraction left are kept, if it followed from the same
    stages: a file beside them says from which.

    Raises:
        DataError: a feature isn't finite.
    """
    run, mark, inputs = workers.folder, f"{folder}/made_from", workers.folder.inputs.encode()
    if folder and not (run.exists(mark) and run.read(mark) == inputs):
        run.delete_folder(folder)
        run.write(mark, inputs)
    rows = np.arange(len(images.table)) if rows is None else rows
    known = ray.put(images.table.select(artefacts.KNOWN))
    job = ExtractJob(stage, config, pixels.source(images), known, rows, ray.put(weights), folder)
    left: dict[str, Any] = {}
    for by_worker in workers.run(job):
        left |= by_worker
    if folder:
        run.delete_file(mark)
    return dict(sorted(left.items()))


@dataclass(frozen=True)
class ExtractJob:
    """Features of some rows (ascending) of a table. Large things in it are references into the
    object store."""

    stage: str
    config: Config
    source: ImageSource
    known: ray.ObjectRef[Any]  # pa.Table: what features files say of each image of the set
    rows: Rows
    weights: ray.ObjectRef[Any]
    folder: str = ""  # of the run folder; without one, tables are returned

    def run(self, worker: Worker) -> dict[str, Any]:
        """This worker's blocks, as `extract` returns them."""
        left: dict[str, Any] = {}
        todo: list[tuple[str, list[Rows]]] = []  # a block's name and its batches
        names, size = block_files(self.folder, len(self.rows)), rows_of_block(len(self.rows))
        most = min(size, BATCH[worker.device.type])
        for number in range(worker.rank, len(names), worker.world_size):
            rows = self.rows[number * size : (number + 1) * size]
            if entry := self._whole(worker, names[number], len(rows)):
                left[names[number]] = entry
            else:
                todo.append((names[number], np.split(rows, range(most, len(rows), most))))
        if not todo:
            return left

        features = self._features(worker, [batch for _, batches in todo for batch in batches])
        known: pa.Table = ray.get(self.known)
        with ThreadPoolExecutor(1) as writer:
            written: Future[Any] = writer.submit(bool)
            for name, batches in todo:
                features_MC = torch.cat([next(features) for _ in batches]).numpy()
                if not np.isfinite(features_MC).all():
                    raise DataError(
                        "the network gives features that are not finite; its weights are damaged."
                    )
                table = artefacts.features_table(known.take(np.concatenate(batches)), features_MC)
                written.result()  # so that no more than two blocks are held
                written = writer.submit(self._leave, worker, name, table, left)
            written.result()
        return left

    def _features(self, worker: Worker, batches: Sequence[Rows]) -> Iterator[Tensor]:
        """float32 (B, C) of each batch on the host. A GPU works on the next one meanwhile."""
        config = self.config
        loaded: Weights = ray.get(self.weights)
        tensors = {name: torch.tensor(array) for name, array in loaded.items()}
        model = TrainedModel(config, tensors)
        model.to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        autocast = mixed_precision(worker.device, config.mixed_precision)
        pixels = self._pixels(worker, batches)
        if worker.device.type == "cuda":
            pixels = ahead((pinned(images_BHWC, worker.device) for images_BHWC in pixels), 2)
        at, begun = 0, time.monotonic()
        shown = begun
        earlier: HostCopy | None = None  # what a GPU may still be working on
        for number, images_BHWC in enumerate(pixels):
            worker.reach(self.stage, number)
            images_BHWC = images_BHWC.to(worker.device, non_blocking=True)
            with torch.inference_mode(), autocast:
                features_BC = model(images_BHWC.permute(0, 3, 1, 2))
            copy = HostCopy(features_BC.float())
            if earlier is not None:
                yield earlier.tensors()[0]
            earlier = copy
            at += len(features_BC)
            if worker.rank == 0 and (now := time.monotonic()) - shown > LOG_SECONDS:
                shown = now
                of_all = min(at * worker.world_size, len(self.rows))  # shares are equal
                worker.log({
                    "stage": self.stage, "extracted": of_all, "num_images": len(self.rows),
                    "extracted_per_s": round(of_all / (now - begun), 1),
                })  # fmt: skip
        if earlier is not None:
            yield earlier.tensors()[0]

    def _pixels(self, worker: Worker, batches: Sequence[Rows]) -> Iterator[Tensor]:
        """uint8 (B, height, width, 3) of each batch: kept images, or decoded ones."""
        others = [batch for batch in batches if not self.source.keeps(batch)]
        decoded = streamed_rows(self.source, others, self.config.input)
        for batch in batches:
            if self.source.keeps(batch):
                yield pixel_reader(worker, self.source, self.config).read(batch)
            else:
                yield next(decoded)

    def _whole(self, worker: Worker, name: str, num_rows: int) -> Entry | None:
        """The entry of a block that an interrupted extraction has left."""
        if not self.folder or not worker.folder.exists(name):
            return None
        data = worker.folder.read(name)
        try:
            return entry_of(data) if len(artefacts.read_table(data)) == num_rows else None
        except pa.ArrowException:
            return None

    def _leave(self, worker: Worker, name: str, table: pa.Table, left: dict[str, Any]) -> None:
        if not self.folder:
            left[name] = table
            return
        data = artefacts.table_bytes(table)
        worker.folder.write(name, data)
        left[name] = entry_of(data)
