"""A GPU's memory: arrays as tensors there, and how an error says that it is full."""

import warnings
import weakref
from typing import Any

import numpy.typing as npt
import torch

# What PyTorch, cuBLAS, cuDNN and RAPIDS say when memory runs out.
SIGNS = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "bad_alloc")

_kept: dict[tuple[int, str], torch.Tensor] = {}  # by the array's id, until it is freed


def to_device(array: npt.NDArray[Any], device: str) -> torch.Tensor:
    """A tensor of the array, which may be a read-only view of an object store."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ")
        return torch.from_numpy(array).to(device)


def kept_on_device(array: npt.NDArray[Any], device: str) -> torch.Tensor:
    """The same, uploaded by the first call alone. The array must not change."""
    if torch.device(device).type == "cpu":
        return to_device(array, device)  # no copy, which would hold the array
    key = id(array), device
    if key not in _kept:
        _kept[key] = to_device(array, device)
        weakref.finalize(array, _kept.pop, key, None).atexit = False
    return _kept[key]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
