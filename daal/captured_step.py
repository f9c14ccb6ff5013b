"""A training step as one CUDA graph: recorded once, then replayed by one launch.

To issue the kernels of a step costs the host as much time as a small batch costs the GPU. A
replay runs the same kernels on the same memory, so that it gives the same bits. For that

- a step takes its batch from tensors that stay where they are: each batch is copied into them;
- nothing of a step may depend on a Python number that changes: a learning rate is a tensor
  (`daal.optimizer`), and all that is drawn for a step comes with its batch;
- the first steps run as they are, on a stream of their own, as torch asks for: libraries set
  themselves up, the optimizer makes its state. They are steps like any other, none is lost.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor

from daal.losses import LossTerms

# Steps before the capture: of one worker as in torch's notes on CUDA graphs, of several what these
# ask for with DDP, which measures its first ten.
WARM_UP, WARM_UP_OF_DDP = 3, 11

# Tensors of one part of a batch, and None where there is none: a NamedTuple.
PartT = TypeVar("PartT", bound=Sequence[Tensor | None])


class CudaGraph:
    """A graph on the current GPU, and the stream that it is captured on."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graph = torch.cuda.CUDAGraph()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Inside, work goes to the stream that is captured later, without a capture."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Inside, work is recorded in place of being done."""
        # Other threads pin the next batches meanwhile, which "global" would not let them.
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            yield

    def replay(self) -> None:
        """Do the recorded work, in its place among all other work."""
        self._graph.replay()

    def forget(self) -> None:
        """Give back the memory of a capture that failed."""
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()


class CapturedStep(Generic[PartT]):
    """`take`, which trains on the parts of a batch, replayed where it can be.

    `take` moves its parts to `device`, unless they are there, and returns loss terms. Their shapes
    must be the same in each step. It may change other tensors, which must stay in their places:
    weights, statistics, the optimizer's state. Autocast inside it may not cache
    (`daal.precision`).
    """

    def __init__(
        self,
        take: Callable[[Sequence[PartT]], LossTerms],
        device: torch.device,
        graph: CudaGraph,
        warm_up: int,
        on_failure: Callable[[RuntimeError], None],
    ) -> None:
        """`on_failure` is told why a step can't be captured. If it returns, steps run as they are
        from then on."""
        self._take, self._device, self._graph = take, device, graph
        self._eager_steps: float = warm_up
        self._on_failure = on_failure
        self._places: list[PartT] = []  # what the graph reads
        self._terms_L: Tensor | None = None  # what it writes, in the order of the names
        self._names: list[str] = []

    def __call__(self, parts: Sequence[PartT]) -> LossTerms:
        """Train on one batch. The terms returned are this step's own, whatever follows.

        Raises ValueError if a tensor has another shape or dtype than it had at the capture.
        """
        if self._eager_steps > 0:
            self._eager_steps -= 1
            with self._graph.beside():
                return self._take(parts)
        if self._terms_L is None:
            self._places = [_places_for(part, self._device) for part in parts]
        for place, part in zip(self._places, parts, strict=True):
            _fill(place, part)
        if self._terms_L is None:
            try:
                self._terms_L = self._capture()
            except RuntimeError as error:
                self._places = []
                self._eager_steps = float("inf")
                # The frames of the error hold all that the step has made on the device.
                reason = error.with_traceback(None)
                self._graph.forget()
                self._on_failure(reason)
                return self(parts)
        self._graph.replay()
        terms = self._terms_L.clone().unbind()
        return LossTerms(**dict(zip(self._names, terms, strict=True)))

    def _capture(self) -> Tensor:
        with self._graph.capture():
            terms = self._take(self._places).detached()
            self._names = list(terms)
            return torch.stack(list(terms.values()))


def _places_for(part: PartT, device: torch.device) -> PartT:
    return type(part)(*(t if t is None else torch.empty_like(t, device=device) for t in part))


def _fill(places: Sequence[Tensor | None], part: Sequence[Tensor | None]) -> None:
    """Copy a part of a batch to where the graph reads it; the host doesn't wait."""
    for place, tensor in zip(places, part, strict=True):
        if place is None and tensor is None:
            continue
        if place is None or tensor is None or _kind(place) != _kind(tensor):
            raise ValueError("a captured step takes batches of the shapes it was captured with")
        place.copy_(tensor, non_blocking=True)


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype
