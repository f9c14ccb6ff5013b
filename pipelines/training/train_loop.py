"""One training as each worker runs it, from a starting network to a trained one."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from torch import Tensor, distributed

from daal.captured_step import WARM_UP, WARM_UP_OF_DDP, CapturedStep, CudaGraph
from daal.config import Config, FitConfig
from daal.data.plan import Plan
from daal.errors import ClusterError, TrainingDiverged, first_line
from daal.host_copy import HostCopy
from daal.losses import LossTerms
from daal.nn.network import DaalNetwork
from daal.optimizer import set_learning_rate
from daal.step import mixed_precision, raise_if_diverged, train_step
from pipelines.images.pixels import pixel_reader
from pipelines.images.stream import FedBatch, StreamSource, ahead, kept_batches, streamed_batches
from pipelines.training.diverged_step import keep_step
from pipelines.training.train_batch import BatchMaker, HostBatch, Labels
from pipelines.training.train_state import TrainState, Weights
from pipelines.workers.group import LOG_SECONDS, Worker


@dataclass
class FitTimes:
    """Where a worker's time went, in seconds."""

    started: float  # when the first step began, since the epoch
    input: float = 0.0  # waiting for images
    first_step: float = 0.0
    checkpoints: float = 0.0  # copying them to the host, and waiting for the last one
    total: float = 0.0  # of the first step and all that followed


@dataclass(frozen=True)
class FitOutcome:
    """What a worker returns of a fit; the weights come from rank 0 alone."""

    weights: Weights | None
    num_workers: int
    device: str
    images: str  # where pixels came from: jpeg, decoded or device
    first_step: int  # above 0 if it went on from a checkpoint
    times: FitTimes


@dataclass(frozen=True)
class FitJob:
    """One training. Large things are references into the object store."""

    stage: str
    config: Config
    fit: FitConfig
    iteration: int
    stream: StreamSource
    labels: ray.ObjectRef[Any]  # Labels
    start: ray.ObjectRef[Any]  # Weights to start from, {} for none

    def run(self, worker: Worker) -> FitOutcome:
        """All steps of the plan, or those behind the last checkpoint of this stage.

        Raises:
            TrainingDiverged: on every worker, with the weights of the step before.
        """
        config, fit = self.config, self.fit
        labels: Labels = ray.get(self.labels)
        plan: Plan = ray.get(self.stream.plan)
        network = build_network(config, labels, ray.get(self.start))
        state = TrainState.start(self.stage, worker, network, plan, fit, config)
        maker = BatchMaker(labels, config, self.iteration, worker.device)
        first_step = state.next_step
        images, fed_batches = self._fed(worker, plan, first_step)
        batches = self._on_host(fed_batches, plan, maker)
        if worker.device.type == "cuda":
            batches = ahead(batches, 2)  # on a CPU, the thread would take the step's own core
        earlier = None  # the step before, which a GPU may still be working on

        state.network.train()
        train = self._training(state, maker)
        times, log = FitTimes(time.time()), _Log(self.stage, worker, plan)
        clock = begun = time.monotonic()
        for step, parts in batches:
            times.input += time.monotonic() - clock
            epoch = plan.epoch_of(step)
            worker.reach(self.stage, step)
            state.writer.raise_if_failed()
            rate = set_learning_rate(
                state.optimizer, fit, step, plan.steps_per_epoch, self.iteration
            )
            terms = train(parts)
            last = step + 1 == plan.num_steps
            end_of_epoch = (step + 1) % plan.steps_per_epoch == 0
            leaving = end_of_epoch and worker.must_leave()
            due = end_of_epoch and (epoch + 1) % config.checkpoint_every_epochs == 0
            saves = last or leaving or due
            if earlier is not None:
                self._check(state, maker, *earlier)
            earlier = HostCopy(state.diverged), terms, step, parts
            if saves or worker.device.type == "cpu":
                self._check(state, maker, *earlier)

            clock = time.monotonic()
            if step == first_step:
                times.first_step = clock - begun
            log.step(step, terms, rate, times.input / (clock - begun))
            if saves:
                state.report(step + 1)
                worker.reach(self.stage, step, "reported")
            if last or leaving:
                state.writer.finish()
            if end_of_epoch:
                # DDP sorts its buckets after its first step, and with them the order of additions.
                # Wrapped again wherever a run may be resumed, both continue alike.
                if worker.world_size > 1:
                    train = self._training(state, maker)
                times.checkpoints += time.monotonic() - clock
                clock = time.monotonic()
        times.total = time.monotonic() - begun

        return FitOutcome(
            state.result() if worker.rank == 0 else None,
            worker.world_size,
            str(worker.device),
            images,
            first_step,
            times,
        )

    def _training(
        self, state: TrainState, maker: BatchMaker
    ) -> Callable[[Sequence[HostBatch]], LossTerms]:
        """`train_step` on the parts of a batch, with all workers; captured where that is wanted."""
        worker = state.worker
        autocast = mixed_precision(worker.device, self.config.mixed_precision)

        def take(parts: Sequence[HostBatch]) -> LossTerms:
            batches = [maker.on_device(part.to(worker.device)) for part in parts]
            return train_step(
                *(model, batches, state.optimizer, self.config.loss),
                *(state.diverged, _agree, autocast, state.teacher),
            )

        if not is_captured(worker, self.config):
            model = state.distributed()
            return take
        graph = CudaGraph()
        with graph.beside():  # where DDP's own work is to be captured
            model = state.distributed()
        warm_up = WARM_UP if worker.world_size == 1 else WARM_UP_OF_DDP
        return CapturedStep(take, worker.device, graph, warm_up, self._not_captured(worker))

    def _not_captured(self, worker: Worker) -> Callable[[RuntimeError], None]:
        """What becomes of a capture that fails: the run ends if it was asked for."""

        def tell(error: RuntimeError) -> None:
            reason = f"the step can't be captured as a CUDA graph ({first_line(error)})"
            if self.config.ray.cuda_graph is True:
                raise ClusterError(f"{reason}; set ray.cuda_graph=false.") from error
            note = f"{reason}; its kernels are launched one by one"
            worker.log({"stage": self.stage, "note": note})

        return tell

    def _check(
        self,
        state: TrainState,
        maker: BatchMaker,
        diverged: HostCopy,
        terms: LossTerms,
        step: int,
        parts: Sequence[HostBatch],
    ) -> None:
        """`raise_if_diverged`, with the step kept where it can be computed again."""
        try:
            raise_if_diverged(diverged, terms, step)
        except TrainingDiverged as error:
            worker = state.worker
            where = ""
            if worker.rank == 0 or not all(map(math.isfinite, terms.as_dict().values())):
                name = f"{self.stage}/diverged-rank-{worker.rank}"
                batches = [maker.on_device(part.to(worker.device)) for part in parts]
                kept = keep_step(worker.folder, name, state.network, batches, self.config)
                where = f" The step is kept: daal replay {kept}"
            if worker.world_size > 1:
                distributed.barrier()  # the first to raise ends the others
            raise TrainingDiverged(f"{error}{where}") from None

    def _fed(self, worker: Worker, plan: Plan, first_step: int) -> tuple[str, Iterator[FedBatch]]:
        stream, share = self.stream, (worker.rank, worker.world_size)
        if stream.source.keeps(plan.source_rows) and stream.target.keeps(plan.target_rows):
            source = pixel_reader(worker, stream.source, self.config)
            target = pixel_reader(worker, stream.target, self.config)
            images = "device" if source.on_device and target.on_device else "decoded"
            batches = kept_batches(plan, source, target, first_step, *share)
        else:
            images = "jpeg"
            batches = streamed_batches(stream, first_step, plan.num_steps, *share)
        return images, batches

    def _on_host(
        self, batches: Iterator[FedBatch], plan: Plan, maker: BatchMaker
    ) -> Iterator[tuple[int, list[HostBatch]]]:
        """Steps, and the parts of each one's batch."""
        num_parts = self.config.accumulate
        for fed in batches:
            epoch = plan.epoch_of(fed.step)
            parts = [maker.on_host(fed.part(at, num_parts), epoch) for at in range(num_parts)]
            yield fed.step, parts


@dataclass
class _Log:
    """Rank 0's lines about a training, one every few seconds."""

    stage: str
    worker: Worker
    plan: Plan
    shown: float = field(default_factory=time.monotonic)
    num_steps: int = 0

    def step(self, step: int, terms: LossTerms, rate: float, input_share: float) -> None:
        plan, now = self.plan, time.monotonic()
        self.num_steps += 1
        last = step + 1 == plan.num_steps
        if self.worker.rank != 0 or (not last and now - self.shown <= LOG_SECONDS):
            return
        num_images = self.num_steps * (plan.batch_source + plan.batch_target)
        self.worker.log({
            "stage": self.stage, "epoch": plan.epoch_of(step) + 1, "epochs": plan.epochs,
            "step": step + 1, "steps": plan.num_steps, "loss": terms.as_dict(), "lr": rate,
            "images_per_s": round(num_images / (now - self.shown), 1),
            "input_share": round(input_share, 4),
        })  # fmt: skip
        self.shown, self.num_steps = now, 0


def is_captured(worker: Worker, config: Config) -> bool:
    """Whether this worker's steps become a CUDA graph."""
    wanted = config.ray.cuda_graph
    by_itself = wanted == "auto" and worker.world_size == 1
    return worker.device.type == "cuda" and (wanted is True or by_itself)


def build_network(config: Config, labels: Labels, start: Weights) -> DaalNetwork:
    """The network of one fit: started from `start`, target head from the cluster centroids.

    Heads that aren't carried over are drawn with the run's seed, the same on every worker.
    Backbone weights come with `start`: a weights file need not exist on every node.
    """
    torch.manual_seed(config.seed)
    adapting = labels.num_clusters > 0
    network = DaalNetwork(
        config.network.model_copy(update={"weights": "none"}),
        num_source_ids=labels.num_source_ids,
        num_clusters=labels.num_clusters,
        domain_head=adapting and config.network.specific_branch and labels.num_source_ids > 0,
    )
    if start:
        carried = [name for name in start if not name.startswith("target_head.")]
        network.load_matching({name: torch.tensor(start[name]) for name in carried})
    if network.target_head is not None:
        network.target_head.start_from(torch.tensor(labels.centroids_KC))
    return network


def _agree(flag: Tensor) -> None:
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
