"""The actor between the driver and its workers. Imports no torch: it is one small process."""

import asyncio
from typing import Any

import ray

from daal.errors import DaalError
from pipelines.workers.planned_faults import Fault


@ray.remote(num_cpus=0)
class Desk:
    """Where the driver leaves jobs, and workers their results and figures."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._number = 0  # of the job on the desk
        self._job: list[Any] = []
        self._attempt = 0  # counts starts of the group
        self._delivered: dict[int, Any] = {}  # by rank
        self._finished: list[Any] | DaalError | None = None
        self._events: list[dict[str, Any]] = []
        self._struck: set[Fault] = set()
        self._mistakes: dict[tuple[int, str], int] = {}  # job number and error -> first attempt

    async def post(self, job: list[Any]) -> None:
        """Put a job on the desk: a list with a reference to it, empty for the end of all work."""
        async with self._changed:
            self._number += 1
            self._job, self._finished, self._delivered = job, None, {}
            self._changed.notify_all()

    async def result(self) -> list[Any] | DaalError:
        """References to what each worker returned, by rank, once all have."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._finished is not None)
            finished, self._job, self._delivered = self._finished, [], {}
            assert finished is not None
            return finished

    async def enter(self) -> int:
        """A group has started; what workers of an earlier one still deliver is not wanted."""
        self._attempt += 1
        self._delivered = {}
        return self._attempt

    async def num_starts(self) -> int:
        return self._attempt

    async def take(self, after: int) -> tuple[int, list[Any]]:
        """The first job behind job number `after` that isn't finished; waits for it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._number > after and self._finished is None)
            return self._number, self._job

    async def deliver(
        self, number: int, attempt: int, rank: int, world_size: int, result: list[Any]
    ) -> None:
        async with self._changed:
            if (number, attempt) == (self._number, self._attempt):
                self._delivered[rank] = result[0]
            if len(self._delivered) == world_size:
                self._finished = [self._delivered[rank] for rank in range(world_size)]
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

    async def strike(self, fault: Fault) -> bool:
        """Whether a planned fault is due: each happens once, however often workers restart."""
        first = fault not in self._struck
        self._struck.add(fault)
        return first
