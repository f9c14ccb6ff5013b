"""The actor between the driver and its workers: one job at a time, its results and its events.

Imports no torch: it is one small process.
"""

import asyncio
from typing import Any

import ray

from daal.errors import DaalError
from pipelines.workers.planned_faults import Fault


@ray.remote(num_cpus=0)
class JobQueue:
    """The driver puts jobs; each worker gets every job and returns its result."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._number = 0  # of the job that was put last
        self._job: list[Any] = []
        self._attempt = 0  # counts starts of the group
        self._results: dict[int, Any] = {}  # by rank
        self._finished: list[Any] | DaalError | None = None
        self._events: list[dict[str, Any]] = []
        self._faults: set[Fault] = set()  # that have happened
        self._mistakes: dict[tuple[int, str], int] = {}  # job number and error -> first attempt

    async def put(self, job: list[Any]) -> None:
        """A list with a reference to the next job; an empty list ends the workers."""
        async with self._changed:
            self._number += 1
            self._job, self._finished, self._results = job, None, {}
            self._changed.notify_all()

    async def results(self) -> list[Any] | DaalError:
        """References to what each worker returned, by rank; waits until all have."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._finished is not None)
            finished, self._job, self._results = self._finished, [], {}
            assert finished is not None
            return finished

    async def start_attempt(self) -> int:
        """A group has started; results of an earlier one no longer count."""
        self._attempt += 1
        self._results = {}
        return self._attempt

    async def num_starts(self) -> int:
        return self._attempt

    async def get(self, after: int) -> tuple[int, list[Any]]:
        """The first unfinished job with a number above `after`; waits for it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._number > after and self._finished is None)
            return self._number, self._job

    async def add_result(
        self, number: int, attempt: int, rank: int, world_size: int, result: list[Any]
    ) -> None:
        async with self._changed:
            if (number, attempt) == (self._number, self._attempt):
                self._results[rank] = result[0]
            if len(self._results) == world_size:
                self._finished = [self._results[rank] for rank in range(world_size)]
                self._changed.notify_all()

    async def fail(self, number: int, error: DaalError) -> None:
        async with self._changed:
            if number == self._number:
                self._finished = error
                self._changed.notify_all()

    async def failed_before(self, number: int, mistake: str) -> bool:
        """Whether a job has ended with this error in an earlier attempt, too."""
        return self._mistakes.setdefault((number, mistake), self._attempt) < self._attempt

    async def log(self, event: dict[str, Any]) -> None:
        self._events.append(event)

    async def events(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events

    async def is_first(self, fault: Fault) -> bool:
        """Whether a planned fault hasn't happened yet; it counts as happened from now on."""
        first = fault not in self._faults
        self._faults.add(fault)
        return first
