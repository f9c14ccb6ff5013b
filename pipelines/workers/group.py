"""One group of Ray Train workers for a whole run, which takes one job after another.

To start a group (processes, imports, the process group of DDP) costs tens of seconds, and each
iteration of Algorithm 1 has two jobs for it, a training and an extraction (on GPUs also
pseudo-labels and scores). So Ray Train's training function is a loop here: a worker takes a job
from the queue, runs it, returns its result and waits for the next. If a worker dies, Ray
Train restarts the group, and the new workers take the same job again (`pipelines.workers.retries`).
"""

import contextlib
import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import distributed

from daal.config import Config
from daal.errors import DaalError
from pipelines.run.folder import RunFolder
from pipelines.show.progress import Progress
from pipelines.workers import retries
from pipelines.workers.elastic import ElasticTrainer, EqualShares
from pipelines.workers.job_queue import JobQueue
from pipelines.workers.planned_faults import Fault, Point, planned_faults
from pipelines.workers.ray_environment import worker_variables
from pipelines.workers.resources import Resources
from pipelines.workers.turn_to_start import turn_to_start
from pipelines.workers.watchdog import Watchdog

POLL_SECONDS = 0.5  # between looks at whether the group is still there
LOG_SECONDS = 2.0  # between lines of a job about how far it is
RESIZE_SECONDS = 60.0  # between looks of an elastic run for new nodes; Ray's own default
CLOSE_SECONDS = 30.0  # what a group may take to end; idle workers need about 3


class Job(Protocol):
    """What workers do together. Large things in it are references into the object store."""

    def run(self, worker: "Worker") -> Any:
        """This worker's part. Results travel through the object store; `pipelines.workers.retries`
        says what errors lead to."""


@dataclass(frozen=True)
class Worker:
    """One process of the group, as its jobs see it."""

    rank: int
    world_size: int
    device: torch.device
    queue: Any  # JobQueue
    folder: RunFolder
    watchdog: Watchdog
    faults: tuple[Fault, ...] = ()
    kept: dict[Any, Any] = field(default_factory=dict)  # from one job to the next

    def log(self, event: dict[str, Any]) -> None:
        """Send figures to the driver, which shows and records them."""
        _log(self.queue, event)

    def node_leaves(self) -> bool:
        """Whether a node of the group is about to be taken away. All workers call it together."""
        if ray.train.get_preemption_info() is None:
            return False
        if self.rank == 0 and "leaving" not in self.kept:
            self.log({"stage": "workers", "note": "a node is about to be taken away"})
            self.kept["leaving"] = True
        return True

    def reach(self, stage: str, step: int, point: Point = "step") -> None:
        """Tell the watchdog where the job is. A fault that a test has planned happens here."""
        where = {"stage": stage, "step": step, "point": point, "rank": self.rank}
        self.watchdog.step(where)
        for fault in self.faults:
            if fault.is_at(**where) and ray.get(self.queue.is_first.remote(fault)):
                fault.happen()


def serve(settings: dict[str, Any]) -> None:
    """Each Ray Train worker's function: runs jobs until there are no more."""
    if settings["deterministic"]:
        torch.use_deterministic_algorithms(True)
        # It would cost time, and no result here reads memory that nothing was written to.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(settings["threads"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device, queue = ray.train.torch.get_device(), settings["queue"]
    watchdog = Watchdog(settings["stall_seconds"], lambda event: _log(queue, event))
    worker = Worker(
        rank, world_size, device, queue, settings["folder"], watchdog, settings["faults"]
    )
    attempt = torch.zeros(1, dtype=torch.int64, device=device)
    if rank == 0:
        attempt.fill_(ray.get(queue.start_attempt.remote()))
        worker.log({"stage": "workers", "starts": int(attempt), "workers": world_size})
    if distributed.is_initialized():
        distributed.broadcast(attempt, src=0)
    number = 0
    while True:
        # References are in lists, as Ray passes the value of a bare one. An empty list is the end.
        number, job_or_end = ray.get(queue.get.remote(number))
        if not job_or_end:
            return
        try:
            job: Job = ray.get(job_or_end[0])  # imports the job's modules
            with worker.watchdog:
                result = job.run(worker)
        except Exception as error:
            reason, mistake = retries.final(error), retries.mistake(error)
            if mistake and ray.get(queue.failed_before.remote(number, mistake)):
                reason = retries.repeated(mistake)
            if reason:
                ray.get(queue.fail.remote(number, reason))
            raise  # so that no other worker waits for this one
        reference = ray.put(result)
        del result, job
        free_memory(device)
        ray.get(queue.add_result.remote(number, int(attempt), rank, world_size, [reference]))


def free_memory(device: torch.device) -> None:
    """Return a GPU's unused memory to its driver. Else torch keeps it, and cuML can't have it."""
    if device.type == "cuda":
        gc.collect()  # DDP and its reducer refer to each other
        torch.cuda.empty_cache()


def _log(queue: Any, event: dict[str, Any]) -> None:
    queue.log.remote({"time": time.time(), **event})


class Workers:
    """The driver's side. The group starts with the first job and ends with the context."""

    def __init__(
        self, config: Config, folder: RunFolder, resources: Resources, progress: Progress
    ) -> None:
        self.resources = resources
        self._config = config
        self.folder = folder
        self._progress = progress
        self._queue: Any = None
        self._group: Future[Any] | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._group is None:
            return
        self._queue.put.remote([])
        if kind is None:
            with contextlib.suppress(Exception):  # all results have arrived
                self._group.result(timeout=CLOSE_SECONDS)
        self._group = self._queue = None

    def run(self, job: Job) -> list[Any]:
        """What each worker returned, by rank.

        Raises:
            DaalError: raised by a worker; ClusterError: too many workers were lost.
        """
        if self._group is None:
            self._start()
        reference = ray.put(job)
        with self._progress.watch(self._queue):
            while True:
                ray.get(self._queue.put.remote([reference]))
                finished = self._wait(self._queue.results.remote())
                if isinstance(finished, DaalError):
                    raise finished
                try:
                    return ray.get(finished)
                except (ray.exceptions.ObjectLostError, ray.exceptions.RayActorError):
                    continue  # a worker was lost before its result was fetched

    def num_starts(self) -> int:
        """How often the group was started: more than once after a restart for any reason."""
        return int(ray.get(self._queue.num_starts.remote())) if self._queue else 0

    def _wait(self, reference: Any) -> Any:
        assert self._group is not None
        while not ray.wait([reference], timeout=POLL_SECONDS)[0]:
            if self._group.done():
                raise retries.cause_of(self._group.exception())
        return ray.get(reference)

    def _start(self) -> None:
        config, resources = self._config, self.resources
        least, most = resources.least_workers, resources.most_workers
        self._queue = JobQueue.options(  # type: ignore[attr-defined]
            scheduling_strategy=NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            )
        ).remote()
        scaling = ScalingConfig(
            num_workers=most if least == most else (least, most),
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=resources.use_gpu,
            resources_per_worker=resources.per_worker,
        )
        is_elastic = least != most
        group = ElasticTrainer(
            serve,
            policy=EqualShares(scaling, config.ray, config.common_batch) if is_elastic else None,
            train_loop_config={
                "queue": self._queue,
                "folder": self.folder,
                "threads": resources.threads,
                "deterministic": config.deterministic,
                "faults": planned_faults(),
                "stall_seconds": 60 * config.ray.stall_minutes,
            },
            scaling_config=scaling,
            run_config=RunConfig(
                name="workers",
                storage_path=self.folder.path("ray_train"),
                storage_filesystem=self.folder.filesystem,
                failure_config=FailureConfig(max_failures=config.ray.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                worker_runtime_env={"env_vars": worker_variables(config.deterministic)},
            ),
        )
        with turn_to_start(config.ray, resources, self._progress.say):
            self._group = _in_thread(group.fit)
            while not (self.num_starts() or self._group.done()):
                time.sleep(POLL_SECONDS)


def _in_thread(function: Callable[[], Any]) -> Future[Any]:
    # On the main thread, Ray Train makes Ctrl-C an exit code of 0.
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
