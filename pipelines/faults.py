"""Planned faults, for tests of what a run survives: a worker ends itself at a named point.

The environment variable DAAL_FAULTS holds them as JSON: [{"stage": "pretrain", "step": 5,
"rank": 1}]. Points are steps of trainings and batches of extractions; each fault happens once.
"""

import json
import os
from dataclasses import dataclass
from typing import Any

FAULTS = "DAAL_FAULTS"


@dataclass(frozen=True)
class Fault:
    """Where a worker is to die."""

    stage: str
    step: int
    rank: int = 0

    def is_at(self, stage: str, step: int, rank: int) -> bool:
        return (stage, step, rank) == (self.stage, self.step, self.rank)


def planned_faults() -> tuple[Fault, ...]:
    """The faults of this process's environment; none where it says nothing."""
    plan: list[dict[str, Any]] = json.loads(os.environ.get(FAULTS, "[]"))
    return tuple(Fault(**fault) for fault in plan)
