"""A process that finds a GPU: its tensors have a device "cuda:0", but no values.

On torch's fake tensors, code takes the branches of a GPU (`is_cuda`, `device.type`), and
- an operation that meets tensors of two devices raises a RuntimeError;
- an operation for which the host would wait for the device raises `HostWaits`: one that asks for a
  value (`.item()`, `bool()`), for a shape that depends on values (`nonzero`, a boolean mask), or a
  copy that is blocking or not from pinned memory;
- the operations that launch kernels can be counted.

This shows nothing about what kernels compute, about their speed, or about memory. A machine that
has a GPU needs CUDA_VISIBLE_DEVICES="".
"""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses import fake_tensor
from torch._subclasses.fake_impls import register_op_impl
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.distributed._meta_registrations import create_fakework
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from daal.data import augment
from daal.nn import batch_norm_kernels

CUDA = torch.device("cuda:0")
# One for the process: networks made in one block are used in another. Tensors made outside become
# fake ones where they meet these.
MODE = FakeTensorMode(allow_non_fake_inputs=True)


class HostWaits(Exception):
    """The host would wait for the device."""


@contextmanager
def fake_cuda(num_workers: int = 1) -> Iterator[None]:
    """Inside, tensors are fake, torch says that there is a GPU, and `Tensor.backward` works there.

    Of several workers (all in one process group, whose collectives do nothing) this is rank 0.
    """
    with ExitStack() as stack:
        # Fake tensors have no values, and real ones can't be met here.
        for kept in (augment.channel_statistics, batch_norm_kernels._counts):
            kept.cache_clear()
            stack.callback(kept.cache_clear)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # by deepcopy
        stack.enter_context(MODE)
        # After the mode has been entered, which looks for a GPU itself and there is none.
        for owner, name, value in (
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "is_bf16_supported", lambda including_emulation=True: True),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "is_current_stream_capturing", lambda: False),
            (torch.cuda, "synchronize", _synchronize),
            (torch.cuda, "Event", FakeEvent),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            # Fake tensors are of a class of their own, for which it would take loops.
            (torch.nn.utils.clip_grad, "_has_foreach_support", lambda tensors, device: True),
            (FakeTensorMode, "avoid_device_init", True),
            # Constants would be computed for real, and asking for their values would go unseen.
            (fake_tensor, "CONSTANT_NUMEL_LIMIT", -1),
            (Tensor, "pin_memory", _pin_memory),
            (Tensor, "backward", backward),
        ):
            stack.enter_context(patch.object(owner, name, value))
        # A tensor's copy is of the same mode.
        same = patch.object(FakeTensorMode, "__deepcopy__", lambda self, _: self, create=True)
        stack.enter_context(same)
        if num_workers > 1:
            dist.init_process_group("fake", rank=0, world_size=num_workers, store=FakeStore())
            stack.callback(dist.destroy_process_group)
        yield


def _synchronize(*_: Any) -> None:
    raise HostWaits(f"a synchronisation at {place()}")


class FakeEvent:
    """In the place of `torch.cuda.Event`."""

    def record(self) -> None: ...

    synchronize = _synchronize


_pinned: set[StorageWeakRef] = set()


def _pin_memory(tensor: Tensor, *_: Any) -> Tensor:
    copy = tensor.clone()
    _pinned.add(StorageWeakRef(copy.untyped_storage()))
    return copy


def is_pinned(tensor: Tensor) -> bool:
    """Whether a fake tensor of the host, or what it is a view of, came from `Tensor.pin_memory`."""
    return StorageWeakRef(tensor.untyped_storage()) in _pinned


# ---- Watching --------------------------------------------------------------------------

# Beside views, which their schemas tell: claimed memory, and questions about the layout.
NO_KERNEL = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("_unsafe_view", "is_same_size", "is_pinned", "device", "resize_", "set_"),
}
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_unsafe_index_put"}


class Watch(TorchDispatchMode):
    """Counts the operations that launch, by phase. Raises `HostWaits` where the host waits.

    `phase` is what the next operations belong to. Use it inside `fake_cuda`, as often as needed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phase = ""
        self.launches: dict[str, Counter[str]] = {}
        self.captures = False  # into a CUDA graph

    def count(self, name: str) -> None:
        self.launches.setdefault(self.phase, Counter())[name] += 1

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        try:
            found = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise self._wait(f"{name} looks at values") from error
        tensors = [x for x in tree_leaves((args, kwargs, found)) if isinstance(x, Tensor)]
        if any(map(_is_cuda, tensors)):
            if not (func.is_view or name in NO_KERNEL):
                self.count(name)
            if self.captures and not all(map(_is_cuda, tensors)):
                raise self._wait(f"{name} in a CUDA graph reads the host's memory")
            if name in INDEXING:
                self._look_at_index([x for x in tree_leaves(args[1]) if isinstance(x, Tensor)])
            if name == "_to_copy":
                self._look_at_copy(args[0], found, kwargs.get("non_blocking", False))
            if name == "copy_":
                self._look_at_copy(args[1], args[0], len(args) > 2 and args[2])
        return found

    def _look_at_index(self, index: list[Tensor]) -> None:
        for tensor in index:
            if tensor.dtype in (torch.bool, torch.uint8):
                raise self._wait("a boolean mask is counted")
            if not _is_cuda(tensor):
                raise self._wait("an index is copied from the host")

    def _look_at_copy(self, source: Tensor, copy: Tensor, non_blocking: bool) -> None:
        if _is_cuda(source) == _is_cuda(copy):
            return
        what = f"{tuple(source.shape)} {source.dtype}"
        if not non_blocking:
            raise self._wait(f"a blocking copy of {what} from {source.device} to {copy.device}")
        # From memory that isn't pinned, non_blocking is a wish: the host waits for the queue.
        if _is_cuda(copy) and not is_pinned(source):
            raise self._wait(f"a copy of {what} from memory that isn't pinned")

    def _wait(self, what: str) -> HostWaits:
        return HostWaits(f"{self.phase}: {what}, at {place()}")


class FakeGraph:
    """In the place of `daal.captured_step.CudaGraph`: a replay is one launch."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    @contextmanager
    def beside(self) -> Iterator[None]:
        yield

    @contextmanager
    def capture(self) -> Iterator[None]:
        with patch.object(self._watch, "captures", True):
            yield

    def forget(self) -> None:
        """Nothing is held."""

    def replay(self) -> None:
        self._watch.phase = "replay"
        self._watch.count("cuda_graph")


def _is_cuda(tensor: Tensor) -> bool:
    # A fake tensor's own answer takes an operation.
    return isinstance(tensor, FakeTensor) and tensor.fake_device.type == "cuda"


def place() -> str:
    """The innermost lines of the code that led here, torch's and the pretence's own apart."""
    frames = (
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_stack(None)
        if frame.f_globals.get("__name__", "").partition(".")[0] != "torch"
        and not frame.f_globals.get("__name__", "").endswith("_cuda")
    )
    return " <- ".join(islice(frames, 3))


# ---- Backward --------------------------------------------------------------------------


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """`loss.backward()` node by node, in this thread; hooks are not called.

    The nodes are the real ones, in the engine's order. The engine itself asks the driver which of
    its devices are in use.
    """
    root: Any = loss.grad_fn
    waiting = _edges(root)
    inputs: dict[Any, dict[int, Tensor]] = {root: {0: torch.ones_like(loss)}}
    ready = [root]
    while ready:
        node = max(ready, key=lambda node: node._sequence_nr())
        ready.remove(node)
        gradients = inputs.pop(node, {})
        if type(node).__name__ == "AccumulateGrad":
            _accumulate(node.variable, gradients[0])
            continue
        for (follower, place), gradient in _run(node, gradients):
            if gradient is not None:
                gradient = _like(gradient, follower._input_metadata[place])
                known = inputs.setdefault(follower, {})
                known[place] = known[place] + gradient if place in known else gradient
            waiting[follower] -= 1
            if waiting[follower] == 0:
                ready.append(follower)


def _run(
    node: Any, gradients: dict[int, Tensor]
) -> Iterator[tuple[tuple[Any, int], Tensor | None]]:
    """Edges to a node's followers, each with the gradient that goes there."""
    given = [gradients.get(place) for place in range(len(node._input_metadata))]
    if callable(node):
        found = node(*given)
        found = found if isinstance(found, tuple) else (found,)
    else:  # a Function written in Python; it gives a None for what isn't a tensor, too
        returned = node.apply(*given)
        found = iter(g for g, needs in zip(returned, node.needs_input_grad, strict=True) if needs)
        found = [next(found) if follower else None for follower, _ in node.next_functions]
    for edge, gradient in zip(node.next_functions, found, strict=True):
        if edge[0] is not None:
            yield edge, gradient


def _edges(root: Any) -> Counter[Any]:
    """How many edges lead to each node of a graph."""
    edges: Counter[Any] = Counter()
    left = [root]
    while left:
        for follower, _ in left.pop().next_functions:
            if follower is not None:
                if follower not in edges:
                    left.append(follower)
                edges[follower] += 1
    return edges


def _like(gradient: Tensor, input: Any) -> Tensor:
    """As the engine fits what a node returns to the next node's input."""
    if gradient.shape != input.shape:
        gradient = gradient.sum_to_size(input.shape)
    return gradient.to(input.dtype)


def _accumulate(parameter: Tensor, gradient: Tensor) -> None:
    """A gradient gets its parameter's layout."""
    assert (gradient.device, gradient.shape) == (parameter.device, parameter.shape)
    if parameter.grad is not None:
        parameter.grad.add_(gradient)
    elif gradient.stride() == parameter.stride() or gradient.ndim < 4:
        parameter.grad = gradient
    else:
        parameter.grad = torch.empty_like(parameter).copy_(gradient)


# ---- Operations of CUDA that torch has no fake kernels for -----------------------------------


def fake_kernel(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of an operation's arguments for operations of aten."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(mode: FakeTensorMode, func: OpOverload, *args: Any, **kwargs: Any) -> Any:
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            if not all(map(_is_cuda, tensors)):
                raise RuntimeError(f"{func} is CUDA's alone, and found two different devices")
            with mode:
                return function(*args, **kwargs)

        for packet in (getattr(torch.ops.aten, name) for name in names):
            for overload in packet.overloads():
                register_op_impl(getattr(packet, overload))(run)
        return function

    return register


@fake_kernel("_fused_sgd_", "_fused_adam_")
def _fused(parameters: list[Tensor], gradients: list[Tensor], *_: Any, **__: Any) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.stride() == gradient.stride(), "a gradient unlike its parameter"


def _channels(images_BCHW: Tensor) -> Tensor:
    is_half = images_BCHW.dtype in (torch.bfloat16, torch.float16)
    dtype = torch.float32 if is_half else images_BCHW.dtype
    return torch.empty(images_BCHW.shape[1], dtype=dtype, device=images_BCHW.device)


@fake_kernel(
    "batch_norm_update_stats", "batch_norm_stats", "batch_norm_gather_stats_with_counts"
)  # fmt: skip
def _statistics(images_BCHW: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _channels(images_BCHW), _channels(images_BCHW)


@fake_kernel("batch_norm_elemt")
def _normalised(images_BCHW: Tensor, *_: Any, out: Tensor | None = None) -> Tensor:
    return torch.empty_like(images_BCHW) if out is None else out


@fake_kernel("batch_norm_backward_reduce")
def _reduced(grad_BCHW: Tensor, images_BCHW: Tensor, *given: Any) -> tuple[Tensor | None, ...]:
    """Sum of gradients, sum times deviation, gradients of weight and bias."""
    of_input, of_weight, of_bias = given[-3:]
    wanted = (of_input, of_input, of_weight, of_bias)
    return tuple(_channels(images_BCHW) if is_wanted else None for is_wanted in wanted)


@fake_kernel("batch_norm_backward_elemt")
def _gradient(grad_BCHW: Tensor, images_BCHW: Tensor, *given: Any) -> Tensor:
    counts_G = given[-1]
    assert counts_G.dtype == torch.int32 and grad_BCHW.stride() == images_BCHW.stride()
    return torch.empty_like(images_BCHW)


@register_op_impl(torch.ops.c10d.allgather_into_tensor_coalesced_.default)
@register_op_impl(torch.ops.c10d.allreduce_coalesced_.default)
def _collective(mode: FakeTensorMode, func: OpOverload, *args: Any) -> Any:
    return create_fakework(args, return_first_arg=False)
