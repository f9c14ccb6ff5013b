"""Copies of a device's tensors on the host, without a wait for the device's queue."""

import torch
from torch import Tensor


class HostCopy:
    """Tensors as they are now, on their way to the host.

    What the device is given after this doesn't change the copies. Reading them waits for the copies
    alone; a read of the tensors would wait for all the work that the device was given since.
    """

    def __init__(self, *tensors: Tensor) -> None:
        # From a GPU to pinned memory, as only that can be written without a wait.
        self._copies = tuple(
            tensor.detach().to("cpu", non_blocking=True, copy=True) for tensor in tensors
        )
        on_gpu = any(tensor.is_cuda for tensor in tensors)
        self._event = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        if self._event is not None:
            self._event.record()

    def tensors(self) -> tuple[Tensor, ...]:
        """The copies, of the same shapes and dtypes, once they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._copies

    def __float__(self) -> float:
        """The value of the only tensor, a scalar."""
        (scalar,) = self.tensors()
        return float(scalar)
