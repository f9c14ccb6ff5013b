"""One training as each worker runs it, from a starting network to a trained one."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from cluster.soft_labels import hard_label_weights, lsr_weights, soft_label_weights
from daal.augment import augment, sample_seeds
from daal.config import Config, FitConfig
from daal.errors import TrainingDiverged
from daal.host_copy import HostCopy
from daal.losses import LossTerms
from daal.network import DaalNetwork
from daal.optimizer import set_learning_rate
from daal.plan import Plan
from daal.step import TrainBatch, mixed_precision, raise_if_diverged, train_step
from pipelines.diverged_step import keep_step
from pipelines.pixels import pixel_reader
from pipelines.stream import FedBatch, StreamSource, ahead, kept_batches, streamed_batches
from pipelines.train_state import TrainState, Weights
from pipelines.workers import LOG_SECONDS, Worker


@dataclass(frozen=True)
class Labels:
    """What the losses know about every row, by domain.

    source_N: class index of each source row. features_NC, pseudo_labels_N, centroids_KC: the
    target's features and clusters as they were before this fit (line 5 of Algorithm 1), of the
    whole body.
    """

    source_N: NDArray[np.int64]
    num_source_ids: int
    pseudo_labels_N: NDArray[np.int64] | None = None
    features_NC: NDArray[np.float32] | None = None
    centroids_KC: NDArray[np.float32] | None = None
    stripe_labels_NS: NDArray[np.int64] | None = None  # clusters of each stripe (SSG)

    @property
    def num_clusters(self) -> int:
        return 0 if self.centroids_KC is None else len(self.centroids_KC)


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
        autocast = mixed_precision(worker.device, config.mixed_precision)
        targets = TargetLabels(labels, config, worker.device)
        first_step = state.next_step
        images, batches = self._batches(worker, plan, first_step)
        earlier = None  # the step before, which a GPU may still be working on

        state.network.train()
        model = state.distributed()
        times, log = FitTimes(time.time()), _Log(self.stage, worker, plan)
        clock = begun = time.monotonic()
        for fed in batches:
            times.input += time.monotonic() - clock
            step, epoch = fed.step, plan.epoch_of(fed.step)
            worker.reach(self.stage, step)
            state.writer.raise_if_failed()
            rate = set_learning_rate(
                state.optimizer, fit, step, plan.steps_per_epoch, self.iteration
            )
            parts = [
                self._train_batch(fed.part(at, fit.accumulate), targets, epoch, worker.device)
                for at in range(fit.accumulate)
            ]
            terms = train_step(
                *(model, parts, state.optimizer, config.loss),
                *(state.diverged, _agree, autocast, state.teacher),
            )
            last = step + 1 == plan.num_steps
            end_of_epoch = (step + 1) % plan.steps_per_epoch == 0
            leaving = end_of_epoch and worker.must_leave()
            due = end_of_epoch and (epoch + 1) % fit.checkpoint_every_epochs == 0
            saves = last or leaving or due
            if earlier is not None:
                self._check(state, *earlier)
            earlier = HostCopy(state.diverged), terms, step, parts
            if saves or worker.device.type == "cpu":
                self._check(state, *earlier)

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
                # DDP sorts its buckets anew after its first step, and with them the order of
                # additions. Wrapped anew wherever a run may be resumed, both go on alike.
                model = state.distributed()
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

    def _check(
        self,
        state: TrainState,
        diverged: HostCopy,
        terms: LossTerms,
        step: int,
        parts: list[TrainBatch],
    ) -> None:
        """`raise_if_diverged`, with the step kept where it can be computed again."""
        try:
            raise_if_diverged(diverged, terms, step)
        except TrainingDiverged as error:
            worker = state.worker
            where = ""
            if worker.rank == 0 or not all(map(math.isfinite, terms.as_dict().values())):
                name = f"{self.stage}/diverged-rank-{worker.rank}"
                kept = keep_step(worker.folder, name, state.network, parts, self.config)
                where = f" The step is kept: daal replay {kept}"
            if worker.world_size > 1:
                distributed.barrier()  # the first to raise ends the others
            raise TrainingDiverged(f"{error}{where}") from None

    def _batches(
        self, worker: Worker, plan: Plan, first_step: int
    ) -> tuple[str, Iterator[FedBatch]]:
        stream, share = self.stream, (worker.rank, worker.world_size)
        if stream.source.keeps(plan.source_rows) and stream.target.keeps(plan.target_rows):
            source = pixel_reader(worker, stream.source, self.config)
            target = pixel_reader(worker, stream.target, self.config)
            images = "device" if source.on_device and target.on_device else "decoded"
            batches = kept_batches(plan, source, target, first_step, *share)
        else:
            images = "jpeg"
            batches = streamed_batches(stream, first_step, plan.num_steps, *share)
        if worker.device.type == "cuda":
            batches = ahead(batches, 2)  # on a CPU, the thread would take the step's own core
        return images, batches

    def _train_batch(
        self, fed: FedBatch, targets: "TargetLabels", epoch: int, device: torch.device
    ) -> TrainBatch:
        """Pixels and row numbers -> augmented images, labels and Eq. 4's weights."""
        config, labels = self.config, targets.labels
        images_BCHW = fed.images_BHWC.to(device, non_blocking=True).permute(0, 3, 1, 2)
        # Target rows are numbered behind the source's, so that no two samples share a seed.
        samples = np.concatenate([fed.source_rows, len(labels.source_N) + fed.target_rows])
        seeds_B = sample_seeds(
            config.seed, self.iteration, epoch, fed.step, copied_to(samples, device)
        )
        return TrainBatch(
            augment(images_BCHW, seeds_B, config.augment),
            copied_to(labels.source_N[fed.source_rows], device),
            *targets.of(fed.target_rows),
        )


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


class TargetLabels:
    """Clusters of a batch's target rows, and Eq. 4's weights (or Table 4's other two kinds)."""

    def __init__(self, labels: Labels, config: Config, device: torch.device) -> None:
        self.labels = labels
        self._config = config.soft_labels
        self._device = device
        if labels.centroids_KC is not None:
            self._centroids_KC = torch.tensor(labels.centroids_KC, device=device)

    def of(self, rows: NDArray[np.int64]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Weights (T, K), clusters (T,) and those of stripes (T, S), on the device.

        Each is None where there is none: pretraining has no clusters.
        """
        labels, config = self.labels, self._config
        if labels.pseudo_labels_N is None or labels.features_NC is None:
            return None, None, None
        pseudo_labels_T = copied_to(labels.pseudo_labels_N[rows], self._device)
        match config.target_labels:
            case "hard":
                weights_TK = hard_label_weights(pseudo_labels_T, labels.num_clusters)
            case "lsr":
                weights_TK = lsr_weights(pseudo_labels_T, labels.num_clusters)
            case _:
                weights_TK = soft_label_weights(
                    copied_to(labels.features_NC[rows], self._device),
                    self._centroids_KC,
                    pseudo_labels_T,
                    config.epsilon,
                    config.form,
                    config.min_sq_distance,
                )
        if labels.stripe_labels_NS is None:
            return weights_TK, pseudo_labels_T, None
        return weights_TK, pseudo_labels_T, copied_to(labels.stripe_labels_NS[rows], self._device)


def copied_to(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy on the device; from pinned memory, so that a GPU's queue is not waited for."""
    tensor = torch.tensor(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


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
    if network.target_head is not None and config.network.centroid_init:
        network.target_head.start_from(torch.tensor(labels.centroids_KC))
    return network


def _agree(flag: Tensor) -> None:
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
