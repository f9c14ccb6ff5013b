"""Lines about a fit while it runs, and where its time went."""

import time
from dataclasses import dataclass, field

from daal.data.plan import Plan
from daal.losses import LossTerms
from pipelines.workers.group import LOG_SECONDS, Worker


@dataclass
class FitTimes:
    """Where a worker's time went, in seconds."""

    started: float  # when the first step began, since the epoch
    input: float = 0.0  # waiting for images
    first_step: float = 0.0
    checkpoints: float = 0.0  # copying them to the host, and waiting for the last one
    total: float = 0.0  # of the first step and all later ones


@dataclass
class FitLog:
    """Rank 0's lines about a fit, one every few seconds."""

    stage: str
    worker: Worker
    plan: Plan
    shown: float = field(default_factory=time.monotonic)
    num_steps: int = 0

    def step(self, step: int, terms: LossTerms, rate: float, input_share: float) -> None:
        plan, now = self.plan, time.monotonic()
        self.num_steps += 1
        last = step + 1 == plan.num_steps
        if self.worker.rank != 0 or (not last and now - self.shown <= LOG_SECONDS):
            return
        num_images = self.num_steps * (plan.batch_source + plan.batch_target)
        self.worker.log({
            "stage": self.stage, "epoch": plan.epoch_of(step) + 1, "epochs": plan.epochs,
            "step": step + 1, "steps": plan.num_steps, "loss": terms.as_dict(), "lr": rate,
            "images_per_s": round(num_images / (now - self.shown), 1),
            "input_share": round(input_share, 4),
        })  # fmt: skip
        self.shown, self.num_steps = now, 0
