"""Where the time of a fit goes, and lines about it while it runs."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from daal.data.plan import Plan
from daal.losses import LossTerms
from pipelines.workers.group import LOG_SECONDS, Worker

Batch = TypeVar("Batch")


@dataclass
class FitTimes:
    """Where a worker's time went, in seconds."""

    started: float  # when the first step began, since the epoch
    input: float = 0.0  # waiting for images
    first_step: float = 0.0
    checkpoints: float = 0.0  # copying them to the host, and waiting for the last one
    total: float = 0.0  # of the first step and all later ones


class FitLog:
    """Times one worker's steps. Rank 0 sends a line about them every few seconds."""

    def __init__(self, stage: str, worker: Worker, plan: Plan) -> None:
        self._stage, self._worker, self._plan = stage, worker, plan
        self._begun = self._clock = self._shown = time.monotonic()
        self._num_steps = 0  # since the last line
        self.times = FitTimes(time.time())

    def arriving(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; what they are waited for counts as input."""
        for batch in batches:
            self.times.input += time.monotonic() - self._clock
            yield batch

    def step_done(self, step: int, terms: LossTerms, rate: float) -> None:
        plan, times = self._plan, self.times
        self._clock = now = time.monotonic()
        times.total = now - self._begun
        times.first_step = times.first_step or times.total
        self._num_steps += 1
        last = step + 1 == plan.num_steps
        if self._worker.rank != 0 or (not last and now - self._shown <= LOG_SECONDS):
            return
        num_images = self._num_steps * (plan.batch_source + plan.batch_target)
        self._worker.log({
            "stage": self._stage, "epoch": plan.epoch_of(step) + 1, "epochs": plan.epochs,
            "step": step + 1, "steps": plan.num_steps, "loss": terms.as_dict(), "lr": rate,
            "images_per_s": round(num_images / (now - self._shown), 1),
            "input_share": round(times.input / times.total, 4),
        })  # fmt: skip
        self._shown, self._num_steps = now, 0

    def epoch_done(self) -> None:
        """What has passed since its last step counts as checkpoints."""
        now = time.monotonic()
        self.times.checkpoints += now - self._clock
        self.times.total = now - self._begun
        self._clock = now
