"""Who computes the stages of an estimate: threads of this process, or Ray's tasks.

A stage is a pure function that is called once for each block. `Runner.run` is all that an estimate
knows of who computes. Each call uses one thread: blocks run side by side.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import torch
from threadpoolctl import threadpool_limits

from cluster.compiled import Function
from cluster.device import is_out_of_memory

FULL = "The GPU's memory ran out; the CPU found the same in more time."
MOST_ROWS = 65_536  # of a block: an interrupted task takes long to stop above

Handle: TypeAlias = Any  # a value; on Ray, a reference to one that may not be there yet
Stage: TypeAlias = Callable[..., Any]  # a pure function
Blocks: TypeAlias = Sequence[tuple[Any, ...]]  # its last arguments, for each block


class TaskTime(NamedTuple):
    """When a task of a stage began and ended (seconds since the epoch), and its CPU seconds."""

    stage: str
    start: float
    end: float
    cpu: float


class Runner(Protocol):
    """Runs stages.

    `device`, "cpu" or "cuda", computes the stages that gain by a GPU. A block of fewer than
    `least_rows` rows isn't worth a task. `notes` are sentences for the user.
    """

    device: str
    num_workers: int
    least_rows: int
    notes: list[str]

    def run(
        self, stage: str, function: Stage, blocks: Blocks, *shared: Any, num_results: int = 1
    ) -> list[Any]:
        """Handles of `function(*shared, *block)` for each block, in order.

        Arguments may be handles. With `num_results` above 1, a call returns so many values, which
        have a handle each.
        """

    def on_device(
        self, stage: str, function: Stage, blocks: Blocks, *shared: Any
    ) -> list[Any] | None:
        """Values of `function(*shared, device, start, stop)` for each block, in order.

        None, and a note, if the device's memory ran out.
        """

    def share(self, value: Any) -> Handle:
        """A handle of a large value that many tasks read."""

    def values(self, handles: Sequence[Handle]) -> list[Any]:
        """The values of handles. Raises the first error of a task."""

    def times(self) -> list[TaskTime]:
        """The times of all tasks that have ended."""


def run_one(runner: Runner, stage: str, function: Stage, *arguments: Any) -> Handle:
    """Handle of `function(*arguments)`, a stage that isn't cut into blocks."""
    return runner.run(stage, function, [()], *arguments)[0]


def can_import(runner: Runner, package: str) -> bool:
    """Whether the runner has a GPU, and a package for GPUs can be imported there."""
    if runner.device == "cpu":
        return False
    return runner.on_device(f"import {package}", imports, [(0, 1)], package) == [True]


def imports(package: str, *_: Any) -> bool:
    """Whether a package can be imported. One that doesn't fit the driver fails in its own way."""
    try:
        import_module(package)
    except Exception:
        return False
    return True


def row_blocks(num_rows: int, num_blocks: int) -> list[tuple[int, int]]:
    """Cut `num_rows` into at most `num_blocks` (start, stop) of nearly equal size, none empty."""
    num_blocks = max(1, min(num_blocks, num_rows))
    edges = [num_rows * block // num_blocks for block in range(num_blocks + 1)]
    return list(pairwise(edges))


def blocks_for(runner: Runner, num_rows: int) -> list[tuple[int, int]]:
    """Row blocks that keep all workers busy, none tiny and none so large that it can't be stopped.

    While blocks meet in pairs (`cluster.neighbours`), half as many tasks run side by side.
    """
    fewest = -(-num_rows // MOST_ROWS)
    wanted = min(4 * runner.num_workers, num_rows // runner.least_rows)
    return row_blocks(num_rows, max(fewest, wanted))


def timed(stage: str, function: Stage, *arguments: Any) -> tuple[Any, TaskTime]:
    """The value of `function(*arguments)`, and its time in this thread."""
    start, cpu = time.time(), time.thread_time()
    value = function(*arguments)
    return value, TaskTime(stage, start, time.time(), time.thread_time() - cpu)


def unless_full(function: Stage, *arguments: Any) -> Any:
    """The value of `function(*arguments)`, or `FULL` if a device's memory ran out."""
    try:
        return function(*arguments)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return FULL


def is_full(value: Any) -> bool:
    """Whether this stands for a value for which there was no memory."""
    return isinstance(value, str) and value == FULL


@dataclass
class StageTime:
    """The time of a stage: `wall` seconds with at least one of its tasks at work, and `cpu` seconds
    of all its `num_tasks` tasks. The first began at `start`, the last ended at `end` (seconds since
    the epoch)."""

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
    uses) blocks side by side keep all cores at work. `device` defaults to a GPU if there is one;
    its blocks are computed one after the other, by the thread that asks for them.
    """

    least_rows = 256

    def __init__(self, num_threads: int | None = None, device: str | None = None) -> None:
        self.num_workers = num_threads or torch.get_num_threads()
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.notes: list[str] = []
        self._times: list[TaskTime] = []
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> "Threads":
        self._torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self._limits = threadpool_limits(1)
        # OpenMP, which MKL computes with, has a setting for each thread that calls it.
        self._pool = ThreadPoolExecutor(
            self.num_workers, initializer=torch.set_num_threads, initargs=(1,)
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        self._limits.restore_original_limits()
        torch.set_num_threads(self._torch_threads)

    def run(
        self, stage: str, function: Stage, blocks: Blocks, *shared: Any, num_results: int = 1
    ) -> list[Any]:
        if self._pool is None:
            raise RuntimeError("Threads compute only inside their with block.")
        return list(
            self._pool.map(lambda block: self._value(stage, function, *shared, *block), blocks)
        )

    def on_device(
        self, stage: str, function: Stage, blocks: Blocks, *shared: Any
    ) -> list[Any] | None:
        values = []
        for block in blocks:
            values.append(self._value(stage, unless_full, function, *shared, self.device, *block))
            if is_full(values[-1]):
                self.notes.append(FULL)
                return None
        return values

    def share(self, value: Any) -> Handle:
        return value

    def values(self, handles: Sequence[Handle]) -> list[Any]:
        return list(handles)

    def times(self) -> list[TaskTime]:
        return self._times

    def _value(self, stage: str, function: Stage, *arguments: Any) -> Any:
        value, time_taken = timed(stage, function, *arguments)
        self._times.append(time_taken)
        return value


def on_threads(function: Function) -> Function:
    """Let a function's `runner`, where none is given, be this machine's threads."""

    @wraps(function)
    def run(*arguments: Any, runner: Runner | None = None, **options: Any) -> Any:
        with Threads() if runner is None else nullcontext(runner) as given:
            return function(*arguments, runner=given, **options)

    return cast(Function, run)
