"""Items made by a thread before they are needed, and memory from which a GPU copies at once."""

import queue
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


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


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in pinned memory, if it is on the host and `device` is a GPU.

    Pinning is a copy that takes time: best done by the thread of `ahead`.
    """
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
