"""A stand-in for a CUDA graph on a CPU: it records each operation, and does it again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What asks for a value on the host, or for a shape that depends on one: no graph has a host.
WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount"}


class RecordedGraph:
    """`daal.captured_step.Graph` on CPU tensors.

    A replay runs the recorded operations on the memory that they had, with the numbers that they
    had: whatever was a number of one step stays so. A CUDA graph does nothing while it is captured;
    here the tensors that `state` names are put back to what they were.
    """

    def __init__(self, state: Callable[[], list[Tensor]]) -> None:
        self._state = state
        self._operations: list[Operation] = []
        self.num_warm_ups = self.num_captures = self.num_replays = 0

    @contextmanager
    def beside(self) -> Iterator[None]:
        self.num_warm_ups += 1
        yield

    @contextmanager
    def capture(self) -> Iterator[None]:
        self.num_captures += 1
        state = self._state()
        before = [tensor.detach().clone() for tensor in state]
        recorder = Recorder()
        try:
            with recorder:
                yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(state, before, strict=True):
                    tensor.copy_(value)
        self._operations = recorder.operations

    def forget(self) -> None:
        self._operations = []

    @torch.no_grad()
    def replay(self) -> None:
        self.num_replays += 1
        for operation in self._operations:
            operation.run()


class Operation:
    """One operation, with its tensors by reference."""

    def __init__(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        self._function, self._args, self._kwargs = function, args, kwargs
        given = {storage(tensor) for tensor in tensors((args, kwargs))}
        self._made = [None if storage(tensor) in given else tensor for tensor in tensors(result)]
        is_view = not any(tensor is not None for tensor in self._made)
        self.does_nothing = is_view and not function._schema.is_mutable

    def run(self) -> None:
        found = tensors(self._function(*self._args, **self._kwargs))
        for place, tensor in zip(self._made, found, strict=True):
            if place is not None:
                place.copy_(tensor)


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name.removeprefix("aten::")
        if name in WAITS:
            raise RuntimeError(f"{name} waits for the device, which a graph can't")
        result = function(*args, **(kwargs or {}))
        operation = Operation(function, args, kwargs or {}, result)
        if not operation.does_nothing and not name.startswith(("empty", "new_empty")):
            self.operations.append(operation)
        return result


def tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
