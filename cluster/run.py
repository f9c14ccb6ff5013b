"""Who computes the stages of an estimate: threads of this process, or Ray's tasks.

A stage is a pure function, called once for each block. `Runner.run` is all that an estimate knows
of who computes. Each call uses one thread: what runs side by side are blocks.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import torch
from threadpoolctl import threadpool_limits

from cluster.blocks import row_blocks
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
    """Runs stages. `device` is where those that gain by a GPU compute: "cpu" or "cuda". Fewer than
    `least_rows` rows aren't worth a block. `notes` are sentences on what happened."""

    device: str
    num_workers: int
    least_rows: int
    notes: list[str]

    def run(
        self, stage: str, function: Stage, blocks: Blocks, *shared: Any, num_results: int = 1
    ) -> list[Any]:
        """Handles of `function(*shared, *block)` for each block, in order.

        Arguments may be handles. With `num_results` above 1, each call returns so many values, and
        has as many handles. `stage` names the work for those who watch it.
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
        """The values of handles; the first error of a task is raised."""

    def times(self) -> list[TaskTime]:
        """What each finished task took."""


def run_one(runner: Runner, stage: str, function: Stage, *arguments: Any) -> Handle:
    """Handle of `function(*arguments)`, a stage that isn't cut into blocks."""
    return runner.run(stage, function, [()], *arguments)[0]


def blocks_for(runner: Runner, num_rows: int) -> list[tuple[int, int]]:
    """Row blocks that keep all workers busy, none tiny and none so large that it can't be stopped.

    Half of them meet the other half at a time (`cluster.blocks.tournament`).
    """
    fewest = -(-num_rows // MOST_ROWS)
    wanted = min(4 * runner.num_workers, num_rows // runner.least_rows)
    return row_blocks(num_rows, max(fewest, wanted))


class Full(NamedTuple):
    """In the place of a value: the device's memory ran out, as it said."""

    said: str


def run_block(stage: str, function: Stage, *arguments: Any) -> tuple[Any, TaskTime]:
    """A value (`Full` if there was no memory for it), and what it took."""
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
        self._pool = ThreadPoolExecutor(self.num_workers)
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

        def compute(block: tuple[Any, ...]) -> Any:
            start, cpu = time.time(), time.thread_time()
            value = function(*shared, *block)
            self._times.append(TaskTime(stage, start, time.time(), time.thread_time() - cpu))
            return value

        return list(self._pool.map(compute, blocks))

    def on_device(
        self, stage: str, function: Stage, blocks: Blocks, *shared: Any
    ) -> list[Any] | None:
        values = []
        for block in blocks:
            value, took = run_block(stage, function, *shared, self.device, *block)
            self._times.append(took)
            if isinstance(value, Full):
                self.notes.append(FULL)
                return None
            values.append(value)
        return values

    def share(self, value: Any) -> Handle:
        return value

    def values(self, handles: Sequence[Handle]) -> list[Any]:
        return list(handles)

    def times(self) -> list[TaskTime]:
        return self._times


def on_threads(function: Function) -> Function:
    """Let a function's `runner`, where none is given, be this machine's threads."""

    @wraps(function)
    def run(*arguments: Any, runner: Runner | None = None, **options: Any) -> Any:
        with Threads() if runner is None else nullcontext(runner) as given:
            return function(*arguments, runner=given, **options)

    return cast(Function, run)
