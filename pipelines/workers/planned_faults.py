"""Planned faults, for tests of what a run survives: a worker dies or hangs at a named point.

The environment variable DAAL_FAULTS holds them as JSON: [{"stage": "pretrain", "step": 5,
"rank": 1}]. `pipelines.workers.group.Worker.reach` looks for them. Each happens once, however often
workers restart: `pipelines.workers.job_queue.JobQueue` remembers it.
"""

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

FAULTS = "DAAL_FAULTS"

# Before a step of a training or a batch of an extraction; while a checkpoint is on its way to the
# run folder, and when the training continues beside it.
Point = Literal["step", "saving", "reported"]


@dataclass(frozen=True)
class Fault:
    """What is to happen to a worker, and where."""

    stage: str
    step: int
    rank: int = 0
    point: Point = "step"
    kind: Literal["kill", "hang"] = "kill"

    def is_at(self, **where: Any) -> bool:
        return where.items() <= asdict(self).items()

    def happen(self) -> None:
        """Kill this process, or hang for ever."""
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            time.sleep(60)


def planned_faults() -> tuple[Fault, ...]:
    """The faults in this process's environment."""
    plan: list[dict[str, Any]] = json.loads(os.environ.get(FAULTS, "[]"))
    return tuple(Fault(**fault) for fault in plan)
