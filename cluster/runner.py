"""Who runs the stages of an estimate: threads of this process, or Ray tasks.

An estimate is a graph: each stage is a pure function of arrays, submitted with handles of what
earlier stages return. Whoever runs it supplies a `Runner`; the stages don't change, and neither
do their results. Stages use one thread each: what runs side by side are row blocks.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import torch
from threadpoolctl import threadpool_limits

from cluster.blocks import Function
from cluster.out_of_memory import is_out_of_memory

FULL = "The GPU's memory ran out; the CPU found the same in more time."

Handle: TypeAlias = Any  # of a value that may not be there yet: a Future, or Ray's ObjectRef


class TaskTime(NamedTuple):
    """When a task of a stage began and ended (seconds since the epoch), and its CPU seconds."""

    stage: str
    start: float
    end: float
    cpu: float


class Runner(Protocol):
    """Runs stages. `device` is where those that gain by a GPU compute: "cpu" or "cuda". `notes`
    are sentences on what happened there."""

    device: str
    num_workers: int
    notes: list[str]

    def default_num_blocks(self, num_samples: int) -> int:
        """Row blocks that keep all workers busy, none tiny. Half of them meet the other half at
        a time (`cluster.blocks.tournament`)."""

    def share(self, value: Any) -> Handle:
        """A handle of a value that many tasks read."""

    def submit(
        self,
        stage: str,
        function: Callable[..., Any],
        *arguments: Any,
        num_results: int = 1,
    ) -> Any:
        """A handle of `function(*arguments)` on a CPU, or a list of `num_results` of them.

        Arguments may be handles. `stage` names the work for whoever watches it.
        """

    def on_device(
        self,
        stage: str,
        function: Callable[..., Any],
        blocks: Sequence[tuple[int, int]],
        *shared: Any,
    ) -> list[Any] | None:
        """Values of `function(*shared, device, start, stop)` of all row blocks, in order.

        `shared` may be handles. None, and a note, if the device's memory ran out.
        """

    def collect(self, handles: Sequence[Handle]) -> list[Any]:
        """The values, once they are there; the first error of a task is raised."""

    def times(self) -> list[TaskTime]:
        """Of all tasks that are done."""


def over_blocks(
    runner: Runner,
    stage: str,
    function: Callable[..., Any],
    *arguments: Any,
    blocks: Iterable[tuple[int, int]],
) -> list[Handle]:
    """Handles of `function(*arguments, start, stop)` of each row block."""
    return [runner.submit(stage, function, *arguments, *block) for block in blocks]


class Full(NamedTuple):
    """In the place of a value: the device's memory ran out, as it said."""

    said: str


def run_block(stage: str, function: Callable[..., Any], *arguments: Any) -> tuple[Any, TaskTime]:
    """A block's value (`Full` if there was no memory for it), and what it took."""
    start, cpu = time.time(), time.thread_time()
    try:
        value = function(*arguments)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        value = Full(str(error))
    return value, TaskTime(stage, start, time.time(), time.thread_time() - cpu)


@dataclass
class StageTime:
    """What a stage took: `wall` seconds with at least one of its tasks at work, `cpu` seconds
    of all its tasks, and how many they were; the first began at `start`, the last ended at
    `end` (seconds since the epoch)."""

    start: float
    end: float
    wall: float = 0.0
    cpu: float = 0.0
    num_tasks: int = 0


def by_stage(times: Iterable[TaskTime]) -> dict[str, StageTime]:
    """Stage times in order of their first task's beginning."""
    stages: dict[str, StageTime] = {}
    for task in sorted(times, key=lambda task: task.start):
        stage = stages.setdefault(task.stage, StageTime(task.start, task.start))
        stage.wall += max(0.0, task.end - max(task.start, stage.end))
        stage.cpu += task.cpu
        stage.num_tasks += 1
        stage.end = max(stage.end, task.end)
    return stages


class Threads:
    """A `Runner` in this process: a context manager, as it holds a pool of threads.

    Inside, BLAS and OpenMP are kept to one thread each: `num_threads` (default: as many as torch
    uses) tasks side by side keep all cores at work. `device` defaults to a GPU if there is one;
    its blocks are computed one after the other, by the thread that asks for them.
    """

    def __init__(self, num_threads: int | None = None, device: str | None = None) -> None:
        self.num_workers = num_threads or torch.get_num_threads()
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.notes: list[str] = []
        self._times: list[TaskTime] = []
        self._is_open = False

    def __enter__(self) -> "Threads":
        self._torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self._limits = threadpool_limits(1)
        self._pool = ThreadPoolExecutor(self.num_workers)
        self._is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        self._pool.shutdown(cancel_futures=True)
        self._limits.restore_original_limits()
        torch.set_num_threads(self._torch_threads)

    def default_num_blocks(self, num_samples: int) -> int:
        return max(1, min(4 * self.num_workers, num_samples // 256))

    def share(self, value: Any) -> Handle:
        return value

    def submit(
        self,
        stage: str,
        function: Callable[..., Any],
        *arguments: Any,
        num_results: int = 1,
    ) -> Any:
        if not self._is_open:
            raise RuntimeError("Threads take tasks only inside their with block.")
        results: list[Future[Any]] = [Future() for _ in range(num_results)]
        task = _Task(self, stage, function, arguments, results)
        missing = [argument for argument in arguments if isinstance(argument, Future)]
        task.num_missing = len(missing) + 1
        for argument in missing:
            argument.add_done_callback(task.one_is_there)
        task.one_is_there()
        return results if num_results > 1 else results[0]

    def on_device(
        self,
        stage: str,
        function: Callable[..., Any],
        blocks: Sequence[tuple[int, int]],
        *shared: Any,
    ) -> list[Any] | None:
        values = []
        there = self.collect(shared)
        for block in blocks:
            value, took = run_block(stage, function, *there, self.device, *block)
            self._times.append(took)
            if isinstance(value, Full):
                self.notes.append(FULL)
                return None
            values.append(value)
        return values

    def collect(self, handles: Sequence[Handle]) -> list[Any]:
        return [handle.result() if isinstance(handle, Future) else handle for handle in handles]

    def times(self) -> list[TaskTime]:
        return self._times

    def start(self, task: "_Task") -> None:
        """Let a task into the pool, once its arguments are there: one that waited for them
        inside would hold a thread."""
        if self._is_open:
            with suppress(RuntimeError):  # closed just now
                self._pool.submit(self._run, task)

    def _run(self, task: "_Task") -> None:
        stage, function, arguments, results = task.take()
        start, cpu = time.time(), time.thread_time()
        try:
            values = [a.result() if isinstance(a, Future) else a for a in arguments]
            found = function(*values)
            pairs = list(zip(results, found if len(results) > 1 else [found], strict=True))
        except BaseException as error:
            for result in results:
                result.set_exception(error)
            return
        self._times.append(TaskTime(stage, start, time.time(), time.thread_time() - cpu))
        for result, value in pairs:
            result.set_result(value)


def on_threads(function: Function) -> Function:
    """Let a function's `runner`, where none is given, be this machine's threads."""

    @wraps(function)
    def run(*arguments: Any, runner: Runner | None = None, **options: Any) -> Any:
        with Threads() if runner is None else nullcontext(runner) as given:
            return function(*arguments, runner=given, **options)

    return cast(Function, run)


class _Task:
    """A submitted task, and how many arguments it still waits for.

    Futures never forget whom they called back, so a task forgets its arguments once it starts:
    else no value of the graph would be freed before the last.
    """

    def __init__(
        self,
        runner: Threads,
        stage: str,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        results: list[Future[Any]],
    ) -> None:
        self._runner, self._all = runner, (stage, function, arguments, results)
        self.num_missing = 0
        self._lock = threading.Lock()

    def one_is_there(self, _: Future[Any] | None = None) -> None:
        with self._lock:
            self.num_missing -= 1
            is_ready = self.num_missing == 0
        if is_ready:
            self._runner.start(self)

    def take(self) -> tuple[str, Callable[..., Any], tuple[Any, ...], list[Future[Any]]]:
        everything = self._all
        del self._all
        return everything
