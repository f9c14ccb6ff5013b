"""CPU tensors that say that they are on "cuda:0": for code whose shapes depend on values.

Where `benchmarks.fake_cuda` can't go, since its tensors have no values. Code takes the branches of
a GPU and gives results that can be compared with the CPU's. An operation that meets tensors of
both devices raises a RuntimeError, as on a GPU; waits of the host, and what is copied between it
and the device, are counted.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.fake_cuda import CUDA, place

MEMORY = 140 * 10**9  # of the device, all of it free
# Operations that look at values, or whose results' shapes depend on them.
LOOKING = {
    *("_local_scalar_dense", "bincount", "equal", "is_nonzero", "masked_select", "nonzero"),
    *("_unique2", "unique_consecutive", "unique_dim", "unique_dim_consecutive"),
}
INDEXING = {"index", "index_put", "index_put_"}
COPYING = {"_to_copy", "copy_"}


class PretendedTensor(Tensor):
    """A tensor on `CUDA` whose values are those of `held`, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> "PretendedTensor":
        tensor: PretendedTensor = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CUDA,
        )
        return tensor

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} of a pretended tensor outside of pretended_cuda, or its thread")


class PretendedCuda(TorchDispatchMode):
    """What was done: `launches` by operation, `waits` by operation and place, bytes copied up to
    the device and down from it, and the CPU seconds that it took to pretend all that."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.bytes_up = self.bytes_down = 0
        self.cpu = 0.0

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        begun = time.thread_time()
        try:
            return self._computed(func, args, dict(kwargs or {}))
        finally:
            self.cpu += time.thread_time() - begun

    def _computed(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, PretendedTensor)]
        device = kwargs.pop("device", None)
        goes_there = bool(there) if device is None else torch.device(device).type == "cuda"
        kwargs.pop("pin_memory", None)
        if not there and not goes_there:
            return func(*args, **kwargs)
        if not func.is_view:
            self.launches[name] += 1
        if name in COPYING:
            if name == "copy_":
                goes_there = isinstance(args[0], PretendedTensor)
            self._note_copy(args[name == "copy_"], goes_there)
        else:
            for tensor in tensors:
                if not isinstance(tensor, PretendedTensor) and tensor.ndim > 0:
                    raise RuntimeError(f"{name} found two different devices at {place()}")
            if name in LOOKING or (name in INDEXING and _has_mask(args[1])):
                self.waits[f"{name} at {place()}"] += 1
        found = _kernel(func)(*tree_map(_held, args), **tree_map(_held, kwargs))
        if not goes_there:
            return found
        # What an operation changes in place it also returns.
        known = {id(tensor.held): tensor for tensor in there}

        def claimed(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return known[id(x)] if id(x) in known else PretendedTensor(x)

        return tree_map(claimed, found)

    def _note_copy(self, source: Tensor, goes_there: bool) -> None:
        if isinstance(source, PretendedTensor) == goes_there:
            return
        self.waits[f"copy {'up' if goes_there else 'down'} at {place()}"] += 1
        if goes_there:
            self.bytes_up += source.nbytes
        else:
            self.bytes_down += source.nbytes

    def synchronize(self) -> None:
        self.waits[f"synchronize at {place()}"] += 1


def _held(x: Any) -> Any:
    return x.held if isinstance(x, PretendedTensor) else x


def _has_mask(index: Any) -> bool:
    return any(isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(index))


def _kernel(func: OpOverload) -> Callable[..., Any]:
    if func is torch.ops.aten.mm.dtype:  # CUDA's alone
        return lambda a, b, dtype: a.to(dtype) @ b.to(dtype)
    return func


@contextmanager
def pretended_cuda() -> Iterator[PretendedCuda]:
    """Inside, in this thread, tensors on "cuda" are pretended ones, and torch has a GPU."""
    of_cpu = Tensor.numpy

    def numpy(tensor: Tensor, *, force: bool = False) -> NDArray[np.generic]:
        if isinstance(tensor, PretendedTensor):
            if not force:
                raise TypeError("a tensor on cuda:0 has no NumPy array; use Tensor.cpu() first")
            tensor = tensor.cpu()
        return of_cpu(tensor, force=force)

    mode = PretendedCuda()
    with ExitStack() as stack:
        for owner, name, value in (
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "empty_cache", lambda: None),
            (torch.cuda, "mem_get_info", lambda *_: (MEMORY, MEMORY)),
            (torch.cuda, "synchronize", lambda *_: mode.synchronize()),
            (
                torch.cuda,
                "current_stream",
                lambda *_: SimpleNamespace(synchronize=mode.synchronize),
            ),
            (Tensor, "numpy", numpy),
        ):
            stack.enter_context(patch.object(owner, name, value))
        # `torch.tensor` makes its tensor on the CPU, and then lets the mode see the copy.
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        torch._C._ensureCUDADeviceGuardSet()
        yield stack.enter_context(mode)
