"""Everything that a training step changes, saved together and resumed together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from daal import checkpoint
from daal.config import Config, FitConfig
from daal.data.plan import Plan
from daal.errors import CheckpointError
from daal.nn.batch_norm import group_size, synchronise
from daal.nn.network import DaalNetwork
from daal.optimizer import make_optimizer
from daal.teacher import Teacher
from pipelines.training.checkpoint_writer import CheckpointWriter
from pipelines.workers.group import Worker

TEACHER = "teacher."  # before the names of its tensors in a checkpoint
Weights = dict[str, NDArray[Any]]  # a network's tensors, as they travel through the object store


@dataclass
class TrainState:
    """The weights on one worker, and all that the next ones depend on."""

    stage: str
    worker: Worker
    network: DaalNetwork
    optimizer: torch.optim.Optimizer
    teacher: Teacher | None
    next_step: int
    diverged: Tensor  # see `daal.step.train_step`
    writer: CheckpointWriter
    compress_gradients: bool

    @classmethod
    def start(
        cls,
        stage: str,
        worker: Worker,
        network: DaalNetwork,
        plan: Plan,
        fit: FitConfig,
        config: Config,
    ) -> "TrainState":
        """From the last whole checkpoint of the stage, or from the network as it is."""
        network = network.to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Before workers share statistics: the teacher's copy shares none.
        teacher = Teacher(network, fit.teacher_momentum) if fit.teacher_momentum else None
        _share_statistics(network, worker, plan, config)
        optimizer = make_optimizer(network, fit.optim)
        next_step = 0
        if (saved := _last_checkpoint(stage, worker)) is not None:
            tensors, optimizer_state, next_step = saved
            taught = {n: tensors.pop(n) for n in [*tensors] if n.startswith(TEACHER)}
            network.load_state_dict(tensors)
            if teacher is not None:
                teacher.load_state_dict({n.removeprefix(TEACHER): t for n, t in taught.items()})
            checkpoint.restore_optimizer(optimizer, network.named_parameters(), optimizer_state)
        if config.compile:
            network.compile()
        return cls(
            stage=stage,
            worker=worker,
            network=network,
            optimizer=optimizer,
            teacher=teacher,
            next_step=next_step,
            diverged=torch.zeros((), device=worker.device),
            writer=CheckpointWriter(stage, worker),
            compress_gradients=config.compress_gradients,
        )

    def distributed(self) -> nn.Module:
        """The network as all workers train it together."""
        if self.worker.world_size == 1:
            return self.network
        on_gpu = self.worker.device.type == "cuda"
        model = DistributedDataParallel(
            self.network,
            device_ids=[self.worker.device] if on_gpu else None,
            # Every worker's BatchNorm keeps statistics of its own; rank 0's are saved.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
        if self.compress_gradients:
            model.register_comm_hook(None, _as_bf16)
        return model

    def report(self, next_step: int) -> None:
        """Hand a checkpoint of the present state to Ray Train; see `CheckpointWriter.begin`."""
        teacher = self.teacher.state_dict() if self.teacher is not None else {}
        self.writer.begin(
            next_step,
            self.network.state_dict() | {f"{TEACHER}{n}": t for n, t in teacher.items()},
            checkpoint.optimizer_tensors(self.optimizer, self.network.named_parameters()),
        )

    def result(self) -> Weights:
        """The trained weights: the teacher's if there is one, or the network's."""
        trained = self.network if self.teacher is None else self.teacher.module
        return {
            name: np.asarray(tensor.cpu().contiguous().numpy())
            for name, tensor in trained.state_dict().items()
        }


Saved = tuple[dict[str, Tensor], dict[str, Tensor], int]  # the optimizer's; the next step


def _as_bf16(state: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """torch's hook. A torch without CUDA refuses it by its own name, also for gloo."""
    return bf16_compress_hook(state, bucket)


def _last_checkpoint(stage: str, worker: Worker) -> Saved | None:
    """Ray Train's checkpoint of this stage, if all workers can read it."""
    saved = None
    if (reported := ray.train.get_checkpoint()) is not None:
        try:
            with reported.as_directory() as directory:
                if any(Path(directory).iterdir()):
                    saved = _read_checkpoint(Path(directory), stage)
        except FileNotFoundError:
            pass  # it was an earlier stage's and has been deleted
        except CheckpointError as error:
            worker.log({"stage": stage, "note": f"starts from its first step again: {error}"})
    # Between two trainings, only the worker that reported a checkpoint has it.
    found = torch.tensor(float(saved is not None), device=worker.device)
    if worker.world_size > 1:
        distributed.all_reduce(found, distributed.ReduceOp.MIN)
    return saved if found else None


def _read_checkpoint(directory: Path, stage: str) -> Saved | None:
    tensors, metadata = checkpoint.load(directory)
    if metadata["stage"] != stage:
        return None
    return tensors, checkpoint.load_optimizer(directory), metadata["next_step"]


def _share_statistics(network: DaalNetwork, worker: Worker, plan: Plan, config: Config) -> None:
    """Have workers with few images share BatchNorm statistics in groups."""
    images = plan.batch_source + plan.batch_target
    if config.network.domain_batch_norm and plan.batch_source and plan.batch_target:
        images = min(plan.batch_source, plan.batch_target)
    images //= worker.world_size * config.accumulate
    size = group_size(images, worker.world_size)
    if size == 1:
        return
    if ("group", size) not in worker.kept:
        groups = [
            distributed.new_group(list(range(first, first + size)))
            for first in range(0, worker.world_size, size)
        ]
        worker.kept["group", size] = groups[worker.rank // size]
    synchronise(network, worker.kept["group", size])
