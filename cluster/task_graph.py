"""The estimate as a graph of Ray tasks: the only file of `cluster` that knows Ray.

    products of row blocks -> refine -> weights -> averages -> histogram -> distances -> DBSCAN

The stages are those of `cluster.estimate`, and give the same bits. Features and other shared
arrays are put into the object store once and read there in place. Tasks bear their stage's
name in the dashboard.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import ray
import torch

from cluster.blocks import MapBlocks
from cluster.estimate import PseudoLabels, estimate_pseudo_labels
from daal.config import ClusterConfig
from daal.errors import ConfigError

Result = TypeVar("Result")

ROWS_PER_BLOCK = 20_000  # below, one task is faster than sending blocks around
PRODUCTS = "neighbours: products"
LABELLING = "dbscan"


def estimate_on_ray(
    features_ND: "npt.NDArray[np.floating] | ray.ObjectRef[Any]",
    config: ClusterConfig = ClusterConfig(),  # noqa: B008 (frozen)
    eps: float | None = None,
    *,
    cpus_per_task: int = 1,
    num_blocks: int | None = None,
    use_gpu: bool = True,
) -> PseudoLabels:
    """`cluster.estimate.estimate_pseudo_labels` on the Ray cluster we are connected to.

    `features_ND` may be a reference into the object store. Each task takes `cpus_per_task`
    CPUs and as many threads. `num_blocks` defaults to one for up to 20,000 images, beyond that
    to what keeps all CPUs (GPUs, if there are any) at work.
    On a cluster with GPUs, products and DBSCAN (unless `config.backend` says otherwise) take
    one each, unless `use_gpu` is false. Raises what the local function raises, and ConfigError
    if `config.backend` is cuml and there is no GPU to use.
    """
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    num_gpus = int(resources.get("GPU", 0)) if use_gpu else 0
    if config.backend == "cuml" and num_gpus == 0:
        raise ConfigError(
            "cluster.backend=cuml needs a GPU and this run has none; use auto, components "
            "or sklearn, which give the same labels."
        )
    features: npt.NDArray[np.floating] = (
        ray.get(features_ND) if isinstance(features_ND, ray.ObjectRef) else features_ND
    )
    if num_blocks is None:
        num_workers = num_gpus or max(1, int(resources.get("CPU", 1)) // cpus_per_task)
        num_blocks = default_num_blocks(len(features), num_workers)
    gpu_stages = {PRODUCTS} if num_gpus else set()
    if num_gpus and config.backend in ("auto", "cuml"):
        gpu_stages.add(LABELLING)
    try:
        return estimate_pseudo_labels(
            features,
            config,
            eps,
            map_blocks=ray_map(cpus_per_task, gpu_stages),
            num_blocks=num_blocks,
            device="cuda" if num_gpus else "cpu",
        )
    except ray.exceptions.RayTaskError as error:
        # Ray wraps what a task raised; our own errors are meant for the user as they are.
        raise error.cause from error


def default_num_blocks(num_samples: int, num_workers: int) -> int:
    """Row blocks for `num_workers`: one for small sets, else so many that pairs of blocks
    (about half their square) give every worker several tasks."""
    if num_samples <= ROWS_PER_BLOCK:
        return 1
    for_workers = int(np.ceil(np.sqrt(6 * num_workers)))
    return max(-(-num_samples // ROWS_PER_BLOCK), for_workers)


def ray_map(cpus_per_task: int, gpu_stages: set[str]) -> MapBlocks:
    """`MapBlocks` on Ray: a task for each block, shared arguments put once each."""
    # Keyed by identity; the object is kept beside its reference so that its id stays taken.
    placed: dict[int, tuple[Any, Any]] = {}

    def place(argument: Any) -> Any:
        if isinstance(argument, int | float | str):
            return argument
        if id(argument) not in placed:
            placed[id(argument)] = (argument, ray.put(argument))
        return placed[id(argument)][1]

    def map_blocks(
        stage: str,
        function: Callable[..., Result],
        blocks: Sequence[tuple[Any, ...]],
        *shared: Any,
    ) -> list[Result]:
        shared_refs = [place(argument) for argument in shared]
        task = _run_block.options(
            name=stage, num_cpus=cpus_per_task, num_gpus=1 if stage in gpu_stages else 0
        )
        return ray.get(
            [task.remote(function, cpus_per_task, *shared_refs, *block) for block in blocks]
        )

    return map_blocks


@ray.remote
def _run_block(function: Callable[..., Result], num_threads: int, *arguments: Any) -> Result:
    torch.set_num_threads(num_threads)
    return function(*arguments)
