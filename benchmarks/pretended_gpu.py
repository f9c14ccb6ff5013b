"""CPU tensors that say they are on a GPU: what goes up there, and what the host does beside it.

Inside `PretendedGpu`, tensors asked for on "cuda" hold CPU tensors and claim cuda:0. Every
operation is computed on what they hold, so values, ties and shapes are true; one that meets
tensors of both devices is an error, as it is on a GPU.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Pretended(torch.Tensor):
    """Claims to be on cuda:0."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Pretended":
        made: Pretended = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=torch.device("cuda:0"),
        )  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any) -> Any:
        raise AssertionError(f"{function} outside of PretendedGpu")


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Pretended) else value


class PretendedGpu(TorchDispatchMode):
    """`uploaded` counts bytes, `cpu` the seconds that computing took here."""

    def __init__(self) -> None:
        super().__init__()
        self.uploaded = 0
        self.cpu = 0.0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        start = time.thread_time()
        try:
            return self._computed(function, args, kwargs)
        finally:
            self.cpu += time.thread_time() - start

    def _computed(self, function: Any, args: Any, kwargs: Any) -> Any:
        name = function.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        pretended = [x for x in tensors if isinstance(x, Pretended)]
        copies = name in ("_to_copy", "copy_")
        if pretended and not copies:
            for x in tensors:
                if not isinstance(x, Pretended) and x.dim():
                    raise RuntimeError(f"{name} meets tensors on cuda:0 and on the CPU")
        kwargs = dict(kwargs or {})
        asked = kwargs.get("device")
        to_gpu = bool(pretended) if asked is None else torch.device(asked).type == "cuda"
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        held_args, held_kwargs = tree_map(_held, (args, kwargs))
        if name == "mm" and function._overloadname.startswith("dtype"):  # CUDA's alone
            out = held_args[0].float() @ held_args[1].float()
        else:
            out = function(*held_args, **held_kwargs)
        if copies and to_gpu and not isinstance(args[-1 if name == "copy_" else 0], Pretended):
            self.uploaded += tensors[-1].nbytes
        if not to_gpu:
            return out
        by_held = {id(x.held): x for x in pretended}  # in place, an argument itself comes back

        def claimed(x: Any) -> Any:
            if not isinstance(x, torch.Tensor) or isinstance(x, Pretended):
                return x
            return by_held[id(x)] if id(x) in by_held else Pretended(x)

        return tree_map(claimed, out)


@contextmanager
def pretended_gpu() -> Iterator[PretendedGpu]:
    """A GPU for this thread, until the block ends."""
    numpy: Callable[..., Any] = torch.Tensor.numpy

    def numpy_of(tensor: torch.Tensor, **options: Any) -> Any:
        if isinstance(tensor, Pretended):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return numpy(tensor, **options)

    torch._C._ensureCUDADeviceGuardSet()
    with (
        patch.object(torch.Tensor, "numpy", numpy_of),
        patch.object(torch.cuda, "_lazy_init", lambda: None),
        patch.object(torch.cuda, "is_available", lambda: True),
        PretendedGpu() as mode,
    ):
        yield mode
