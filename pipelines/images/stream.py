"""The batches of a fit, in the plan's order, ahead of the training step.

Pixels that are kept are gathered from memory. Others are streamed by Ray Data, one stream for
all epochs of a fit, which ships nothing but step numbers: each task works out which images its
step takes (the plan is a pure function), reads their bytes in place from the object store, and
hands on decoded pixels.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import ray
import ray.data
import torch
from numpy.typing import NDArray
from torch import Tensor

from daal.config import InputConfig
from daal.data.plan import Batch, Plan
from pipelines.images.pixels import ImageSource, PixelReader, decode_rows, get_once

T = TypeVar("T")
# A Ray Data task decodes this much, and at most so many batches; some run ahead of the training.
# Fewer, larger tasks start sooner (a thousand take seconds), but the first batch later.
TASK_BYTES, TASK_STEPS = 32 * 1024**2, 16


@dataclass(frozen=True)
class FedBatch:
    """One worker's batch. images_BHWC: uint8, source rows first; rows: into each domain's table."""

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
    """One worker's share of the steps from `first_step` on, from kept pixels, on its device."""
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
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    plan: Plan = get_once(stream.plan)
    share = (plan.batch_source + plan.batch_target) // world_size
    step_bytes = share * stream.size.height * stream.size.width * 3
    steps = max(1, min(TASK_STEPS, TASK_BYTES // step_bytes))
    dataset = ray.data.range(
        num_steps - first_step, override_num_blocks=-(-(num_steps - first_step) // steps)
    ).map(_BatchReader(stream, first_step, rank, world_size).read)
    # One row is one batch, whatever its size.
    for row in dataset.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2):
        yield FedBatch(
            step=int(row["step"][0]),
            images_BHWC=torch.tensor(row["images"][0]),
            source_rows=row["source_rows"][0],
            target_rows=row["target_rows"][0],
        )


@dataclass(frozen=True)
class _BatchReader:
    stream: StreamSource
    first_step: int
    rank: int
    world_size: int

    def read(self, row: dict[str, Any]) -> dict[str, Any]:
        plan: Plan = get_once(self.stream.plan)
        batch: Batch = plan.batch(self.first_step + int(row["id"]))
        batch = batch.share(self.rank, self.world_size)
        images = [
            decode_rows(self.stream.source.table, batch.source, self.stream.size),
            decode_rows(self.stream.target.table, batch.target, self.stream.size),
        ]
        return {
            "step": batch.step,
            "images": np.concatenate(images),
            "source_rows": batch.source,
            "target_rows": batch.target,
        }


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in memory from which a copy to the device waits for nothing.

    Pinned memory if the device is a GPU; what is there already, or stays on the host, as it is.
    Pinning is a copy that takes time: best done by the thread of `ahead`.
    """
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items, made by a thread up to `depth` ahead of their use."""
    made: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    unwanted = threading.Event()

    def put(kind: str, value: Any = None) -> None:
        while not unwanted.is_set():
            try:
                return made.put((kind, value), timeout=0.2)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put("item", item)
                if unwanted.is_set():
                    return
            put("end")
        except BaseException as error:
            put("error", error)

    threading.Thread(target=make, daemon=True).start()
    try:
        while True:
            kind, value = made.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        unwanted.set()
