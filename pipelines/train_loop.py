"""What each Ray Train worker runs: one fit, from a starting network to a trained one."""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.soft_labels import hard_label_weights, lsr_weights, soft_label_weights
from daal import checkpoint
from daal.augment import augment, sample_seeds
from daal.config import Config, FitConfig
from daal.errors import TrainingDiverged
from daal.network import DaalNetwork
from daal.plan import Plan
from daal.step import (
    TrainBatch,
    make_optimizer,
    mixed_precision,
    set_learning_rate,
    train_step,
)
from pipelines.stream import StreamedBatch, StreamSource, stream_batches

LOG_SECONDS = 2.0


@dataclass(frozen=True)
class Labels:
    """What the losses know about every row, by domain.

    source_N: class index of each source row. features_NC, pseudo_labels_N, centroids_KC: the
    target's features and clusters as they were before this fit (line 5 of Algorithm 1).
    """

    source_N: NDArray[np.int64]
    num_source_ids: int
    pseudo_labels_N: NDArray[np.int64] | None = None
    features_NC: NDArray[np.float32] | None = None
    centroids_KC: NDArray[np.float32] | None = None

    @property
    def num_clusters(self) -> int:
        return 0 if self.centroids_KC is None else len(self.centroids_KC)


@dataclass(frozen=True)
class FitJob:
    """One training. Large things are references into the object store."""

    config: Config
    fit: FitConfig
    iteration: int
    stream: StreamSource
    labels: ray.ObjectRef[Any]  # Labels
    start: ray.ObjectRef[Any]  # dict of tensors (NumPy) to start from, {} for none
    monitor: Any  # handle of pipelines.progress.Monitor
    threads: int


@dataclass(frozen=True)
class FitOutcome:
    """How a fit ended, as rank 0 saw it."""

    num_workers: int
    device: str
    diverged: str | None = None


def train_loop(settings: dict[str, FitJob]) -> FitOutcome:
    """One worker's part of a fit; its checkpoints are reported to Ray Train.

    Divergence is an outcome, not an error: Ray would try the same steps again.
    """
    try:
        _fit(settings["job"])
        diverged = None
    except TrainingDiverged as error:
        diverged = str(error)
    world_size = ray.train.get_context().get_world_size()
    return FitOutcome(world_size, str(ray.train.torch.get_device()), diverged)


def _fit(job: FitJob) -> None:
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    torch.set_num_threads(job.threads)
    config, fit = job.config, job.fit
    labels: Labels = ray.get(job.labels)
    plan: Plan = ray.get(job.stream.plan)

    network = build_network(config, labels, ray.get(job.start))
    optimizer_state, first_step = None, 0
    if (saved := ray.train.get_checkpoint()) is not None:
        with saved.as_directory() as directory:
            tensors, metadata = checkpoint.load(Path(directory))
            optimizer_state = checkpoint.load_optimizer(Path(directory))
        network.load_state_dict(tensors)
        first_step = metadata["next_step"]
    model = ray.train.torch.prepare_model(network.to(memory_format=torch.channels_last))
    optimizer = make_optimizer(network, fit.optim)
    if optimizer_state is not None:
        checkpoint.restore_optimizer(optimizer, network.named_parameters(), optimizer_state)
    autocast = mixed_precision(device, config.mixed_precision)
    model.train()

    shown, images = time.monotonic(), 0
    for streamed in stream_batches(job.stream, first_step, plan.num_steps, rank, world_size):
        step = streamed.step
        epoch = plan.epoch_of(step)
        batch = to_train_batch(streamed, job, labels, epoch, device)
        rate = set_learning_rate(optimizer, fit, step, plan.steps_per_epoch)
        terms = train_step(model, batch, optimizer, config.loss, _everywhere, autocast)

        images += len(batch.images_BCHW) * world_size
        last = step + 1 == plan.num_steps
        if rank == 0 and (last or time.monotonic() - shown > LOG_SECONDS):
            speed = images / (time.monotonic() - shown)
            figures = {"loss": terms.as_dict(), "lr": rate, "images_per_s": round(speed, 1)}
            job.monitor.log.remote({"epoch": epoch + 1, "epochs": plan.epochs, "step": step + 1,
                                    "steps": plan.num_steps, **figures})  # fmt: skip
            shown, images = time.monotonic(), 0
        end_of_epoch = (step + 1) % plan.steps_per_epoch == 0
        if last or (end_of_epoch and (epoch + 1) % fit.checkpoint_every_epochs == 0):
            _report(network, optimizer, step + 1, rank)


def build_network(config: Config, labels: Labels, start: dict[str, NDArray[Any]]) -> DaalNetwork:
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
        domain_head=adapting and config.network.specific_branch,
    )
    if start:
        tensors = {name: torch.tensor(array) for name, array in start.items()}
        network.load_matching(
            {n: t for n, t in tensors.items() if not n.startswith("target_head.")}
        )
    if network.target_head is not None and config.network.centroid_init:
        network.target_head.start_from(torch.tensor(labels.centroids_KC))
    return network


def to_train_batch(
    streamed: StreamedBatch, job: FitJob, labels: Labels, epoch: int, device: torch.device
) -> TrainBatch:
    """Decoded pixels and row numbers -> augmented images, labels and Eq. 4's weights."""
    config = job.config
    images_BCHW = torch.tensor(streamed.images_BHWC, device=device).permute(0, 3, 1, 2)
    # Target rows are numbered behind the source's, so that no two samples share a seed.
    samples = np.concatenate([streamed.source_rows, len(labels.source_N) + streamed.target_rows])
    seeds_B = sample_seeds(
        config.seed, job.iteration, epoch, streamed.step, torch.tensor(samples, device=device)
    )
    return TrainBatch(
        augment(images_BCHW, seeds_B, config.augment),
        torch.tensor(labels.source_N[streamed.source_rows], device=device),
        _target_weights(config, labels, streamed.target_rows, device),
    )


def _target_weights(
    config: Config, labels: Labels, rows: NDArray[np.int64], device: torch.device
) -> Tensor | None:
    if labels.pseudo_labels_N is None or labels.features_NC is None:
        return None
    pseudo_labels_T = torch.tensor(labels.pseudo_labels_N[rows], device=device)
    match config.soft_labels.target_labels:
        case "hard":
            return hard_label_weights(pseudo_labels_T, labels.num_clusters)
        case "lsr":
            return lsr_weights(pseudo_labels_T, labels.num_clusters)
        case _:
            return soft_label_weights(
                torch.tensor(labels.features_NC[rows], device=device),
                torch.tensor(labels.centroids_KC, device=device),
                pseudo_labels_T,
                config.soft_labels.epsilon,
                config.soft_labels.form,
                config.soft_labels.min_sq_distance,
            )


def _everywhere(holds: Tensor) -> bool:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        flag = holds.float()
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
        return bool(flag)
    return bool(holds)


def _report(
    network: DaalNetwork, optimizer: torch.optim.Optimizer, next_step: int, rank: int
) -> None:
    """Hand a checkpoint to Ray Train; a barrier for all workers."""
    if rank != 0:
        ray.train.report({"next_step": next_step})
        return
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "checkpoint"
        checkpoint.save(
            directory,
            network.state_dict(),
            {"next_step": next_step},
            optimizer=checkpoint.optimizer_tensors(optimizer, network.named_parameters()),
        )
        ray.train.report(
            {"next_step": next_step},
            checkpoint=ray.train.Checkpoint.from_directory(os.fspath(directory)),
        )
