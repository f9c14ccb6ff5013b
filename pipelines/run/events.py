"""Lines of metrics.jsonl: what a run says of itself while it works.

A line is one of the events below; which one, its fields tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

METRICS = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class Event:
    """Scores, clusters, seconds, workers, ...: a stage's `figures`, and nothing more special."""

    stage: str
    time: float = 0.0  # seconds since the epoch
    figures: Mapping[str, Any] = field(default_factory=dict)  # all of the line


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A stage begins."""

    state: str


@dataclass(frozen=True, kw_only=True)
class TrainingStep(Event):
    """How far a training is; `step` from 1, rates over the steps since the line before."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: Mapping[str, float]  # by term
    lr: float = 0.0
    images_per_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Extracted(Event):
    """How far an extraction is."""

    extracted: int
    num_images: int
    extracted_per_s: float


@dataclass(frozen=True, kw_only=True)
class GroupStarted(Event):
    """The group of workers has started, for the `starts`-th time."""

    starts: int
    workers: int


@dataclass(frozen=True, kw_only=True)
class Stalled(Event):
    """A worker has finished no step for long, and ends; where it was."""

    rank: int
    step: int
    stalled_s: int
    stack: str


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """What a user should know."""

    note: str


KINDS: dict[str, type[Event]] = {
    "loss": TrainingStep, "extracted": Extracted, "state": Started, "starts": GroupStarted,
    "stack": Stalled, "note": Note,
}  # fmt: skip


def event_of(line: Mapping[str, Any]) -> Event:
    """Raises TypeError if the line isn't whole."""
    kind = next((kind for key, kind in KINDS.items() if key in line), Event)
    known = {each.name: line[each.name] for each in fields(kind) if each.name in line}
    return kind(**{**known, "figures": line})
