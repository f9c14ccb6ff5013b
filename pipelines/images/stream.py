"""The batches of a fit, in the plan's order, prepared before the training step needs them.

Pixels that are kept are gathered from memory. Others are decoded by Ray Data, which is sent
nothing but numbers: each task computes which images its step takes (the plan is a pure function),
reads their bytes from the store, and returns decoded pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from numpy.typing import NDArray
from torch import Tensor

from daal.config import InputConfig
from daal.data.plan import Batch, Plan
from pipelines.images.get_once import get_once
from pipelines.images.pixels import ImageSource, PixelReader, decode_rows

# A Ray Data task of a fit decodes this much, and at most so many batches. Fewer, larger tasks start
# sooner (a thousand take seconds), but give the first batch later.
TASK_BYTES, TASK_STEPS = 32 * 1024**2, 16
BATCHES_PER_TASK = 4  # of an extraction


@dataclass(frozen=True)
class FedBatch:
    """One worker's batch. images_BHWC: uint8, source rows first; rows: of each domain's table."""

    step: int
    images_BHWC: Tensor
    source_rows: NDArray[np.int64]
    target_rows: NDArray[np.int64]

    def part(self, at: int, num_parts: int) -> "FedBatch":
        """This worker's share of the batch's part number `at` (`daal.data.plan.Batch`)."""
        if num_parts == 1:
            return self
        domains = self.images_BHWC.tensor_split([len(self.source_rows)])
        images_BHWC = torch.cat([images.tensor_split(num_parts)[at] for images in domains])
        source_rows, target_rows = (
            np.split(rows, num_parts)[at] for rows in (self.source_rows, self.target_rows)
        )
        return FedBatch(self.step, images_BHWC, source_rows, target_rows)


@dataclass(frozen=True)
class StreamSource:
    """What a fit reads: references into the object store, small to ship."""

    plan: ray.ObjectRef[Any]
    source: ImageSource
    target: ImageSource
    size: InputConfig


def kept_batches(
    plan: Plan,
    source: PixelReader,
    target: PixelReader,
    first_step: int,
    rank: int,
    world_size: int,
) -> Iterator[FedBatch]:
    """One worker's share of each step from `first_step` on, from kept pixels, on its device."""
    for step in range(first_step, plan.num_steps):
        share = plan.batch(step).share(rank, world_size)
        parts = [
            reader.read(rows).to(reader.device, non_blocking=True)
            for reader, rows in ((source, share.source), (target, share.target))
            if len(rows)
        ]
        images_BHWC = torch.cat(parts) if len(parts) > 1 else parts[0]
        yield FedBatch(step, images_BHWC, share.source, share.target)


def streamed_batches(
    stream: StreamSource, first_step: int, num_steps: int, rank: int, world_size: int
) -> Iterator[FedBatch]:
    """The same from JPEG bytes, decoded by Ray Data."""
    if first_step >= num_steps:
        return
    plan: Plan = get_once(stream.plan)
    share = (plan.batch_source + plan.batch_target) // world_size
    step_bytes = share * stream.size.height * stream.size.width * 3
    steps = max(1, min(TASK_STEPS, TASK_BYTES // step_bytes))
    decode = partial(_decoded_step, stream, first_step, rank, world_size)
    for found in _in_order(decode, num_steps - first_step, steps):
        yield FedBatch(
            step=int(found["step"]),
            images_BHWC=torch.tensor(found["images"]),
            source_rows=found["source_rows"],
            target_rows=found["target_rows"],
        )


def _decoded_step(
    stream: StreamSource, first_step: int, rank: int, world_size: int, number: int
) -> dict[str, Any]:
    plan: Plan = get_once(stream.plan)
    batch: Batch = plan.batch(first_step + number).share(rank, world_size)
    images = [
        decode_rows(stream.source.store, batch.source, stream.size),
        decode_rows(stream.target.store, batch.target, stream.size),
    ]
    return {
        "step": batch.step,
        "images": np.concatenate(images),
        "source_rows": batch.source,
        "target_rows": batch.target,
    }


def streamed_rows(
    source: ImageSource, batches: Sequence[NDArray[np.int64]], size: InputConfig
) -> Iterator[Tensor]:
    """uint8 (B, height, width, 3) of each batch of rows, decoded by Ray Data."""

    def decode(number: int) -> dict[str, Any]:
        return {"images": decode_rows(source.store, batches[number], size)}

    for found in _in_order(decode, len(batches), BATCHES_PER_TASK):
        yield torch.tensor(found["images"])


def _in_order(
    make: Callable[[int], dict[str, Any]], number: int, per_task: int
) -> Iterator[dict[str, Any]]:
    """make(0), make(1), ..., made by Ray Data tasks."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    dataset = ray.data.range(number, override_num_blocks=-(-number // per_task)).map(
        lambda row: make(int(row["id"]))
    )
    for row in dataset.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2):
        yield {name: values[0] for name, values in row.items()}
