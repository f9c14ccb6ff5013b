"""The function that takes a fit's steps: eager, or captured as a CUDA graph."""

from collections.abc import Callable, Sequence

from torch import Tensor, distributed

from daal.captured_step import WARM_UP, WARM_UP_OF_DDP, CapturedStep, CudaGraph
from daal.config import Config
from daal.errors import ClusterError, first_line
from daal.losses import LossTerms
from daal.precision import mixed_precision
from daal.step import train_step
from pipelines.training.train_batch import BatchMaker, HostBatch
from pipelines.training.train_state import TrainState
from pipelines.workers.group import Worker

StepFunction = Callable[[Sequence[HostBatch]], LossTerms]  # of the parts of one batch


def step_function(state: TrainState, maker: BatchMaker, config: Config) -> StepFunction:
    """`train_step` together with all workers.

    The function raises ClusterError if ray.cuda_graph=true asks for a capture that fails.
    """
    worker = state.worker
    autocast = mixed_precision(worker.device, config.mixed_precision)

    def take(parts: Sequence[HostBatch]) -> LossTerms:
        return train_step(
            model,
            [maker.on_device(part.to(worker.device)) for part in parts],
            state.optimizer,
            config.loss,
            state.diverged,
            _maximum_of_workers,
            autocast,
            state.teacher,
        )

    def not_captured(error: RuntimeError) -> None:
        reason = f"the step can't be captured as a CUDA graph ({first_line(error)})"
        if config.ray.cuda_graph is True:
            raise ClusterError(f"{reason}; set ray.cuda_graph=false.") from error
        note = f"{reason}; its kernels are launched one by one"
        worker.log({"stage": state.stage, "note": note})

    if not is_captured(worker, config):
        model = state.distributed()
        return take
    graph = CudaGraph()
    with graph.beside():  # so that DDP's own work can be captured
        model = state.distributed()
    warm_up = WARM_UP if worker.world_size == 1 else WARM_UP_OF_DDP
    return CapturedStep(take, worker.device, graph, warm_up, not_captured)


def is_captured(worker: Worker, config: Config) -> bool:
    """Whether this worker's steps become a CUDA graph."""
    wanted = config.ray.cuda_graph
    by_itself = wanted == "auto" and worker.world_size == 1
    return worker.device.type == "cuda" and (wanted is True or by_itself)


def _maximum_of_workers(flag: Tensor) -> None:
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
