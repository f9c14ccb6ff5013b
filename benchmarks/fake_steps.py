"""The training step of any configuration on fake CUDA tensors, as a worker runs it.

A step is made of what `pipelines.train_loop.FitJob` is made of; only DDP is left out, whose C++
core knows no fake tensors: it would add a copy and an all-reduce for each of a few buckets.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, distributed
from torch._subclasses.fake_tensor import unset_fake_temporarily

from benchmarks.fake_cuda import CUDA, Watch, backward, fake_cuda
from daal import augment
from daal.config import Config
from daal.network import DaalNetwork
from daal.optimizer import set_learning_rate
from daal.plan import Plan
from daal.step import TrainBatch, mixed_precision, train_step
from pipelines import train_state
from pipelines.stream import FedBatch
from pipelines.train_batch import BatchMaker, HostBatch, Labels
from pipelines.train_loop import build_network
from pipelines.train_state import TrainState

Stage = Literal["pretrain", "adapt"]
PHASES = ("batch", "forward", "losses", "backward", "check", "update")
memory: Any = torch.utils.deterministic
NUM_ROWS, NUM_IDS, NUM_CLUSTERS = 12_936, 751, 700  # about Market-1501's


class FakeFit:
    """A worker's part of a training, inside `process(config)`.

    streamed: images come from the host's memory; else they are on the device.
    """

    def __init__(self, config: Config, stage: Stage, streamed: bool = False) -> None:
        self.config, self.stage = config, stage
        self.fit = config.pretrain if stage == "pretrain" else config.adapt
        workers = config.ray.num_workers
        self.shares = self.fit.batch_source // workers, self.fit.batch_target // workers
        labels = _drawn_labels(config, stage, has_source=self.fit.batch_source > 0)
        worker: Any = SimpleNamespace(rank=0, world_size=workers, device=CUDA, kept={})
        rows, batches = np.arange(NUM_ROWS), (self.fit.batch_source, self.fit.batch_target)
        plan = Plan(0, 1, 1, *batches, rows, rows, rows, num_parts=self.fit.accumulate)
        network = _memory_only(config, labels)
        with patch.object(train_state, "_last_checkpoint", lambda *_: None):
            self.state = TrainState.start(stage, worker, network, plan, self.fit, config)
        self.state.network.train()
        self.autocast = mixed_precision(CUDA, config.mixed_precision)
        self.maker = BatchMaker(labels, config, 1, CUDA)
        size = config.input
        self.images_BHWC = torch.empty(
            (sum(self.shares), size.height, size.width, 3),
            dtype=torch.uint8,
            device="cpu" if streamed else CUDA,
        )
        augment._statistics.cache_clear()  # those of the CPU, or of an earlier fake mode

    def on_host(self, step: int) -> list[HostBatch]:
        """What the host prepares of a step's batch, beside the training."""
        rows = (np.arange(share, dtype=np.int64) for share in self.shares)
        fed = FedBatch(step, self.images_BHWC, *rows)
        num_parts = self.fit.accumulate
        return [self.maker.on_host(fed.part(at, num_parts), 0) for at in range(num_parts)]

    def on_device(self, given: list[HostBatch]) -> list[TrainBatch]:
        return [self.maker.on_device(part.to(CUDA)) for part in given]

    def warm_up(self) -> None:
        """What the first step alone does: copy constants, and make the optimizer's state."""
        self.on_device(self.on_host(0))
        for parameter in self.state.network.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        self.state.optimizer.step()

    def step(self, step: int, watch: Watch) -> list[TrainBatch]:
        """A whole step, its phases noted in `watch`. Returns what was trained on."""
        watch.phase = "batch"
        batches = self.on_device(self.on_host(step))
        set_learning_rate(self.state.optimizer, self.fit, step, 100)
        with phases(self.state.network, self.state.optimizer, watch):
            train_step(
                *(self.state.network, batches, self.state.optimizer, self.config.loss),
                *(self.state.diverged, _agree, self.autocast, self.state.teacher),
            )
        return batches


@contextmanager
def process(config: Config) -> Iterator[None]:
    """A worker's process (rank 0), set up as `pipelines.workers.serve` does, that sees a GPU."""
    settings = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(config.deterministic)
    memory.fill_uninitialized_memory = False
    try:
        with fake_cuda(config.ray.num_workers):
            yield
    finally:
        torch.use_deterministic_algorithms(settings[0])
        memory.fill_uninitialized_memory = settings[1]


def watched_step(config: Config, stage: Stage, streamed: bool = False) -> Watch:
    """The launches of a step after the first.

    Raises:
        HostWaits: the host waits for the device in it.
        AssertionError: images or weights have lost their layout.
    """
    with process(config):
        fit = FakeFit(config, stage, streamed)
        fit.warm_up()
        with Watch() as watch:
            batches = fit.step(1, watch)
        for tensor in (
            *(batch.images_BCHW for batch in batches),
            *(weight for weight in fit.state.network.parameters() if weight.ndim == 4),
        ):
            assert tensor.is_contiguous(memory_format=torch.channels_last), "not channels_last"
    return watch


def by_phase(launches: dict[str, Counter[str]]) -> dict[str, int]:
    """The number of launches of each phase, and of all."""
    counts = {phase: launches.get(phase, Counter()).total() for phase in PHASES}
    return counts | {"all": sum(counts.values())}


@contextmanager
def phases(network: DaalNetwork, optimizer: torch.optim.Optimizer, watch: Watch) -> Iterator[None]:
    """Notes in which part of `train_step` an operation is done."""

    def enter(phase: str) -> None:
        watch.phase = phase

    def watched_backward(loss: Tensor) -> None:
        enter("backward")
        backward(loss)
        enter("check")

    hooks = [
        network.register_forward_pre_hook(lambda *_: enter("forward")),
        network.register_forward_hook(lambda *_: enter("losses")),
        optimizer.register_step_pre_hook(lambda *_: enter("update")),
    ]
    with patch.object(Tensor, "backward", watched_backward):
        yield
    for hook in hooks:
        hook.remove()


def _agree(flag: Tensor) -> None:
    if distributed.is_initialized():
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)


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
    network = config.network.model_copy(update={"centroid_init": False})
    with unset_fake_temporarily(), torch.device("meta"):
        built = build_network(config.model_copy(update={"network": network}), labels, {})
        return built.to_empty(device="cpu")
