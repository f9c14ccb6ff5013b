"""Ray Data streams a plan: step numbers in, decoded batches out.

A stream ships nothing but step numbers. Each task works out which images its step takes
(the plan is a pure function), reads their bytes in place from the object store, and hands
on uint8 pixels ahead of the training step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from daal.config import InputConfig
from daal.images import decode
from daal.plan import Plan

STEPS_PER_BLOCK = 8  # a Ray Data task decodes this many batches; some run ahead of the training


@dataclass(frozen=True)
class StreamedBatch:
    """One worker's batch. images_BHWC: uint8, source rows first; rows: into each domain's table."""

    step: int
    images_BHWC: NDArray[np.uint8]
    source_rows: NDArray[np.int64]
    target_rows: NDArray[np.int64]


@dataclass(frozen=True)
class StreamSource:
    """What a stream reads: references into the object store, small to ship."""

    plan: ray.ObjectRef[Any]
    source_images: ray.ObjectRef[Any]
    target_images: ray.ObjectRef[Any]
    size: InputConfig


def stream_batches(
    source: StreamSource, first_step: int, num_steps: int, rank: int, world_size: int
) -> Iterator[StreamedBatch]:
    """One worker's share of steps first_step .. num_steps-1, in order."""
    if first_step >= num_steps:
        return
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    num_blocks = -(-(num_steps - first_step) // STEPS_PER_BLOCK)
    dataset = ray.data.range(num_steps - first_step, override_num_blocks=num_blocks).map(
        _BatchReader(source, first_step, rank, world_size).read
    )
    # One row is one batch, whatever its size.
    for row in dataset.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2):
        yield StreamedBatch(
            step=int(row["step"][0]),
            images_BHWC=row["images"][0],
            source_rows=row["source_rows"][0],
            target_rows=row["target_rows"][0],
        )


@dataclass(frozen=True)
class _BatchReader:
    source: StreamSource
    first_step: int
    rank: int
    world_size: int

    def read(self, row: dict[str, Any]) -> dict[str, Any]:
        plan: Plan = _get_once(self.source.plan)
        batch = plan.batch(self.first_step + int(row["id"])).share(self.rank, self.world_size)
        images = [
            decode_rows(self.source.source_images, batch.source, self.source.size),
            decode_rows(self.source.target_images, batch.target, self.source.size),
        ]
        return {
            "step": batch.step,
            "images": np.concatenate(images),
            "source_rows": batch.source,
            "target_rows": batch.target,
        }


def decode_rows(
    table_ref: ray.ObjectRef[Any], rows: NDArray[np.int64], size: InputConfig
) -> NDArray[np.uint8]:
    """Pixels (len(rows), height, width, 3) of rows of an image table in the object store."""
    pixels = np.empty((len(rows), size.height, size.width, 3), np.uint8)
    if len(rows):
        table: pa.Table = _get_once(table_ref)
        column = table.column("image")
        for at, row in enumerate(rows.tolist()):
            pixels[at] = decode(column[row].as_buffer().to_pybytes(), size.height, size.width)
    return pixels


@lru_cache(maxsize=8)
def _get_once(reference: ray.ObjectRef[Any]) -> Any:
    # Zero-copy views; cached because a worker process serves many tasks of one stream.
    return ray.get(reference)
