"""What trainings were made on: another number or kind of workers changes a model a little."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.workers.resources import Resources


def made_on(resources: Resources) -> dict[str, Any]:
    """What the journal's line of a training says; nothing of an elastic run, which changes its
    workers."""
    if resources.least_workers < resources.most_workers:
        return {}
    return {"workers": resources.num_workers, "device": "GPU" if resources.use_gpu else "CPU"}


def workers_text(line: Mapping[str, Any]) -> str:
    workers = "worker" if line["workers"] == 1 else "workers"
    return f"{line['workers']} {workers} on {line['device']}s"


def other_workers(
    stage: str, now: Mapping[str, Any], journal: Sequence[Mapping[str, Any]]
) -> str | None:
    """A sentence if the training before this one was made on other workers."""
    before = next((line for line in reversed(journal) if "workers" in line), now)
    if workers_text(before) == workers_text(now):
        return None
    return (
        f"{stage} is trained on {workers_text(now)}, where {before['stage']} was on "
        f"{workers_text(before)}: the result differs from that of either alone in rounding and in "
        "BatchNorm's groups"
    )
