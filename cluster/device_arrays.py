"""Arrays as tensors on a device: uploaded once, and kept there as long as the array lives."""

import warnings
import weakref
from typing import Any

import numpy.typing as npt
import torch

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
