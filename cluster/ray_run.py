"""Stages as tasks of Ray.

The stages give the same bits however the rows are cut and wherever they run; so a task that is lost
with its worker or node is run again by Ray, and nothing changes. Features of length 1 are in the
object store and read there in place, once per node; what travels between tasks are lists and sparse
rows. This process holds references and labels, and no features but those that it is given. Tasks
have their stage's name in the dashboard. Where there are GPUs, what gains by them is computed there
(`OnGpus`). A small set is one task.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import ray
import torch
from ray.exceptions import RayError
from threadpoolctl import threadpool_limits

from cluster.estimate import ALONE, PseudoLabels, estimate_pseudo_labels
from cluster.given_features import Features
from cluster.run import (
    FULL,
    Blocks,
    Handle,
    Stage,
    TaskTime,
    Threads,
    is_full,
    timed,
    unless_full,
)
from daal.available_cpus import available_cpus
from daal.config import ClusterConfig

OnProgress: TypeAlias = Callable[[str, int, int], None]  # stage, tasks done, tasks submitted
# Called as `on_gpus(stage, function, blocks, *shared)`: the values of
# `function(*shared, device, start, stop)` of all row blocks, in order. What is shared may be
# references into the object store.
OnGpus: TypeAlias = Callable[..., list[Any]]

SMALL, SMALL_ON_GPU = 20_000, 100_000  # images: up to here, one task is faster than many
GPU = "cuda"  # what GPU tasks compute on
POLL_SECONDS = 1.0
CANCEL_SECONDS = 5.0  # that cancelled tasks may take to end by themselves


def estimate_on_ray(
    features_ND: Features,
    config: ClusterConfig = ALONE,
    eps: float | None = None,
    *,
    camids_N: npt.NDArray[np.integer] | None = None,
    source_N: npt.NDArray[np.floating] | None = None,
    num_threads: int = 1,
    num_blocks: int | None = None,
    on_gpus: OnGpus | None = None,
    on_progress: OnProgress | None = None,
) -> PseudoLabels:
    """`cluster.estimate.estimate_pseudo_labels` on the Ray cluster we are connected to.

    Stored features are read by a task, not by this process. Up to 20,000 images (100,000 with
    `on_gpus`) are one task with `num_threads` threads; beyond that, or with `num_blocks`, tasks of
    one CPU and one thread keep the whole cluster at work. The neighbour search and cuML are
    computed by `on_gpus`, if it is given. `on_progress` is called about once a second while there
    are several tasks.

    Raises what the local function raises, and RayError if Ray gives a task up.
    """
    of_images: dict[str, Any] = {"camids_N": camids_N, "source_N": source_N}
    if num_blocks is None and len(features_ND) <= (SMALL if on_gpus is None else SMALL_ON_GPU):
        whole = (num_threads, config, eps, of_images, features_ND)
        if on_gpus is not None:
            found: PseudoLabels = on_gpus("pseudo-labels", _run_whole, [(0, 1)], *whole)[0]
            return found
        reference = as_task(_run_whole).options(name="pseudo-labels").remote(*whole, "cpu")
        try:
            found = result_of(reference)
            return found
        except KeyboardInterrupt:
            ray.cancel(reference)
            raise
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    runner = RayTasks(int(resources.get("CPU", 1)), on_gpus, on_progress)
    try:
        return estimate_pseudo_labels(
            features_ND, config, eps, runner=runner, num_blocks=num_blocks, **of_images
        )
    except (KeyboardInterrupt, RayError):
        # Not after an error of our own: to cancel a task in the moment when it ends makes Ray
        # 2.60 abort this process (ray-project/ray#54527), and what is left ends soon by itself.
        runner.cancel()
        raise


def on_free_gpus(stage: str, function: Stage, blocks: Blocks, *shared: Any) -> list[Any]:
    """`OnGpus` by a task on each free GPU, where no worker of a run holds them."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    num_tasks = max(1, min(int(free.get("GPU", 0)), len(blocks)))
    task = ray.remote(num_cpus=0, num_gpus=1)(_run_blocks).options(name=stage)
    # Put once, and brought once to each node.
    shared = tuple(s if isinstance(s, ray.ObjectRef) else ray.put(s) for s in shared)
    parts = [
        task.remote(function, blocks[number::num_tasks], GPU, *shared)
        for number in range(num_tasks)
    ]
    values: list[Any] = [None] * len(blocks)
    for number, part in enumerate(parts):
        values[number::num_tasks] = result_of(part)
    return values


@cache
def as_task(function: Stage) -> Any:
    """A function as a task of one CPU."""
    return ray.remote(num_cpus=1)(function)


class RayTasks:
    """`cluster.run.Runner` on Ray: handles are object references."""

    least_rows = 2048

    def __init__(
        self, num_workers: int, on_gpus: OnGpus | None = None, on_progress: OnProgress | None = None
    ) -> None:
        self.device = "cpu" if on_gpus is None else "cuda"
        self.num_workers = num_workers
        self.notes: list[str] = []
        self._on_gpus = on_gpus
        self._on_progress = on_progress
        self._times: dict[Any, str] = {}  # the reference of each task's time, and its stage
        self._times_on_gpus: list[TaskTime] = []
        self._shown: Counter[str] = Counter()

    def run(
        self, stage: str, function: Stage, blocks: Blocks, *shared: Any, num_results: int = 1
    ) -> list[Any]:
        task = as_task(_run_stage).options(name=stage, num_returns=num_results + 1)
        handles: list[Any] = []
        for block in blocks:
            *results, spent = task.remote(stage, function, num_results, *shared, *block)
            self._times[spent] = stage
            handles.append(results if num_results > 1 else results[0])
        return handles

    def on_device(
        self, stage: str, function: Stage, blocks: Blocks, *shared: Any
    ) -> list[Any] | None:
        assert self._on_gpus is not None
        done = self._on_gpus(stage, partial(timed, stage, unless_full, function), blocks, *shared)
        self._times_on_gpus += [time_taken for _, time_taken in done]
        values = [value for value, _ in done]
        if any(map(is_full, values)):
            self.notes.append(FULL)
            return None
        return values

    def share(self, value: Any) -> Handle:
        return value if isinstance(value, ray.ObjectRef) else ray.put(value)

    def values(self, handles: Sequence[Handle]) -> list[Any]:
        pending = [handle for handle in handles if isinstance(handle, ray.ObjectRef)]
        while pending:
            done, pending = ray.wait(
                pending, num_returns=len(pending), timeout=POLL_SECONDS, fetch_local=False
            )
            self._report()
            for reference in done:
                result_of(reference)  # an error is raised at once, whatever the others do
        return [
            result_of(handle) if isinstance(handle, ray.ObjectRef) else handle for handle in handles
        ]

    def times(self) -> list[TaskTime]:
        return [*self._times_on_gpus, *ray.get(self._done())]

    def cancel(self) -> None:
        """End what is still waiting or at work (after a lost task, or Ctrl-C).

        A task that is just being started may not hear that it is cancelled, and would hold its CPUs
        to its end: its process is ended then.
        """
        done = set(self._done())
        left = [spent for spent in self._times if spent not in done]
        for force in (False, True):
            for spent in left:
                ray.cancel(spent, force=force)
            if left:
                _, left = ray.wait(left, num_returns=len(left), timeout=CANCEL_SECONDS)

    def _done(self) -> list[Any]:
        refs = list(self._times)
        return ray.wait(refs, num_returns=len(refs), timeout=0)[0] if refs else []

    def _report(self) -> None:
        if self._on_progress is None:
            return
        num_submitted = Counter(self._times.values())
        num_done = Counter(self._times[spent] for spent in self._done())
        for stage, num in num_done.items():
            if num != self._shown[stage]:
                self._on_progress(stage, num, num_submitted[stage])
        self._shown = num_done


def result_of(reference: Any) -> Any:
    """The value of a task's reference, or the error of ours that the task raised."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # Ray wraps what a task raised; our own errors are meant for the user as they are.
        raise error.cause from error


def _run_stage(stage: str, function: Stage, num_results: int, *arguments: Any) -> list[Any]:
    torch.set_num_threads(1)
    with threadpool_limits(1):
        found, time_taken = timed(stage, function, *arguments)
    return [*found, time_taken] if num_results > 1 else [found, time_taken]


def _run_blocks(function: Stage, blocks: Blocks, device: str, *shared: Any) -> list[Any]:
    return [function(*shared, device, *block) for block in blocks]


def _run_whole(
    num_threads: int,
    config: ClusterConfig,
    eps: float | None,
    of_images: dict[str, Any],
    features_ND: Features,
    device: str,
    *_: int,
) -> PseudoLabels:
    num_threads = min(num_threads, available_cpus())
    torch.set_num_threads(num_threads)
    with Threads(num_threads, device) as runner:
        return estimate_pseudo_labels(features_ND, config, eps, runner=runner, **of_images)
