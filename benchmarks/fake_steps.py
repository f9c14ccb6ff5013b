"""The training step of any configuration on fake CUDA tensors, as a worker runs it.

The step is `pipelines.training.step_function`'s own. Only DDP is left out, as its C++ core
knows no fake tensors: it would add a copy and an all-reduce for each of a few buckets.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from benchmarks.fake_cuda import CUDA, FakeGraph, Watch, backward, fake_cuda
from daal.config import Config
from daal.data.plan import Plan
from daal.host_copy import HostCopy
from daal.nn.backbone import build_backbone
from daal.nn.network import DaalNetwork
from daal.optimizer import set_learning_rate
from pipelines.images.stream import FedBatch
from pipelines.training import step_function as steps
from pipelines.training import train_state
from pipelines.training.train_batch import BatchMaker, HostBatch, Labels
from pipelines.training.train_loop import build_network
from pipelines.training.train_state import TrainState

Stage = Literal["pretrain", "adapt"]
PHASES = ("batch", "forward", "losses", "backward", "check", "update")
NUM_ROWS, NUM_IDS, NUM_CLUSTERS = 12_936, 751, 700  # about Market-1501's
memory: Any = torch.utils.deterministic


@contextmanager
def process(config: Config) -> Iterator[None]:
    """The process of rank 0, set up as `pipelines.workers.group.serve` does; it sees a GPU."""
    settings = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(config.deterministic)
    memory.fill_uninitialized_memory = False
    try:
        with fake_cuda(config.ray.num_workers):
            yield
    finally:
        torch.use_deterministic_algorithms(settings[0])
        memory.fill_uninitialized_memory = settings[1]


class FakeFit:
    """A worker's part of a training, inside `process(config)`.

    streamed: images come from the host's memory; else they are on the device. `watch` sees the
    steps. A step is captured if `config.ray.cuda_graph` says so, without steps before that.
    """

    def __init__(self, config: Config, stage: Stage, streamed: bool = False) -> None:
        self.watch = Watch()
        self.fit = config.pretrain if stage == "pretrain" else config.adapt
        workers = config.ray.num_workers
        self.num_parts = config.accumulate
        self._shares = self.fit.batch_source // workers, self.fit.batch_target // workers
        labels = _drawn_labels(config, stage, has_source=self.fit.batch_source > 0)
        worker: Any = SimpleNamespace(
            rank=0, world_size=workers, device=CUDA, kept={}, folder=None, log=_fail
        )
        rows, batches = np.arange(NUM_ROWS), (self.fit.batch_source, self.fit.batch_target)
        plan = Plan(0, 1, 1, *batches, rows, rows, rows, num_parts=config.accumulate)
        with ExitStack() as stack:
            for owner, name, value in (
                (train_state, "_last_checkpoint", lambda *_: None),
                (TrainState, "distributed", lambda state: state.network),
                (steps, "CudaGraph", lambda: FakeGraph(self.watch)),
                (steps, "WARM_UP", 0),
            ):
                stack.enter_context(patch.object(owner, name, value))
            self.maker = BatchMaker(labels, config, 1, CUDA)
            network = _memory_only(config, labels)
            self.state = TrainState.start(stage, worker, network, plan, self.fit, config)
            self._train = steps.step_function(self.state, self.maker, config)
        self.state.network.train()
        size = config.input
        self._images_BHWC = torch.empty(
            (sum(self._shares), size.height, size.width, 3),
            dtype=torch.uint8,
            device="cpu" if streamed else CUDA,
        )

    def on_host(self, step: int) -> list[HostBatch]:
        """What the host prepares of a step's batch, beside the training."""
        rows = (np.arange(share, dtype=np.int64) for share in self._shares)
        fed = FedBatch(step, self._images_BHWC, *rows)
        num_parts = self.num_parts
        return [self.maker.on_host(fed.part(at, num_parts), 0) for at in range(num_parts)]

    def warm_up(self) -> None:
        """What the first step alone does: copy constants, and make the optimizer's state."""
        for part in self.on_host(0):
            self.maker.on_device(part.to(CUDA))
        for parameter in self.state.network.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        self.state.optimizer.step()

    def step(self, step: int) -> None:
        """A step as `FitJob.run` does it."""
        parts = self.on_host(step)
        self.watch.phase = "update"
        set_learning_rate(self.state.optimizer, self.fit, step, 100)
        self.watch.phase = "batch"
        with _phases(self.state.network, self.state.optimizer, self.watch):
            self._train(parts)
        HostCopy(self.state.diverged)


def watched_step(config: Config, stage: Stage, streamed: bool = False, number: int = 0) -> Watch:
    """The launches of a training's step, without what the first step alone does.

    Raises:
        HostWaits: the host waits for the device in this step, or one before.
        AssertionError: images or weights have lost their layout.
    """
    with process(config):
        fit = FakeFit(config, stage, streamed)
        fit.warm_up()
        for step in range(number + 1):
            fit.watch.launches.clear()
            with fit.watch:
                fit.step(step)
        for weight in fit.state.network.parameters():
            _assert_layout(weight)
    return fit.watch


def by_phase(launches: dict[str, Counter[str]]) -> dict[str, int]:
    """The number of launches of each phase, and of all."""
    counts = {phase: launches.get(phase, Counter()).total() for phase in PHASES}
    return counts | {"all": sum(found.total() for found in launches.values())}


@contextmanager
def _phases(network: DaalNetwork, optimizer: torch.optim.Optimizer, watch: Watch) -> Iterator[None]:
    """Notes in which part of a step an operation is done, and looks at the images."""

    def enter(phase: str) -> None:
        watch.phase = phase

    def forward(_: Any, arguments: tuple[Any, ...]) -> None:
        _assert_layout(arguments[0])
        enter("forward")

    def watched_backward(loss: Tensor) -> None:
        enter("backward")
        backward(loss)
        enter("check")

    hooks = [
        network.register_forward_pre_hook(forward),
        network.register_forward_hook(lambda *_: enter("losses")),
        optimizer.register_step_pre_hook(lambda *_: enter("update")),
    ]
    with patch.object(Tensor, "backward", watched_backward):
        yield
    for hook in hooks:
        hook.remove()


def _assert_layout(tensor: Tensor) -> None:
    is_last = tensor.ndim < 4 or tensor.is_contiguous(memory_format=torch.channels_last)
    assert is_last, "not channels_last"


def _fail(event: dict[str, Any]) -> None:
    raise AssertionError(event)


def _drawn_labels(config: Config, stage: Stage, has_source: bool) -> Labels:
    rng = np.random.default_rng(0)
    source_N = rng.integers(0, NUM_IDS, NUM_ROWS)
    num_ids = NUM_IDS if has_source else 0
    if stage == "pretrain":
        return Labels(source_N, num_ids)
    stripes = config.network.stripes
    return Labels(
        source_N,
        num_ids,
        rng.integers(0, NUM_CLUSTERS, NUM_ROWS),
        np.zeros((NUM_ROWS, 64), np.float32),
        np.zeros((NUM_CLUSTERS, 64), np.float32),
        rng.integers(0, NUM_CLUSTERS, (NUM_ROWS, stripes)) if stripes else None,
    )


def _memory_only(config: Config, labels: Labels) -> DaalNetwork:
    """The network with memory that nobody fills, as fake tensors have no values anyway."""
    with unset_fake_temporarily(), torch.device("meta"):
        without_weights = config.network.model_copy(update={"weights": "none"})
        channels = build_backbone(without_weights, config.input).channels
        labels = replace(labels, centroids_KC=np.zeros((NUM_CLUSTERS, channels), np.float32))
        built = build_network(config, labels, {})
        return built.to_empty(device="cpu")
