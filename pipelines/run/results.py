"""What a run finds out: clusters.json, evaluation.json and summary.json, typed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from cluster.quality import ClusterQuality
from pipelines.run.stages import PRETRAIN, SUPERVISED, Stage

# Notes of kept labels begin so. Release 0.1 wrote no `kept`: there this note tells.
KEPT_NOTE = "kept the previous labels"


@dataclass(frozen=True, kw_only=True)
class Clusters(ClusterQuality):
    """Figures of one labelling. Those of `ClusterQuality` and the silhouettes are of the labels
    for the whole body. `eps` has a value for each part of the body that is labelled by itself
    (`daal.nn.stripes`); `first_eps` those before they were made smaller because one cluster held
    too many images.

    `agreement` is the adjusted Rand index with the labelling before. `kept`: no new labels were
    found, so these are the previous iteration's.
    """

    eps: list[float]
    first_eps: list[float] | None = None
    notes: tuple[str, ...] = ()
    silhouette: float | None = None
    cross_camera_silhouette: float | None = None
    agreement: float | None = None
    kept: bool = False

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Clusters":
        """From clusters.json of this release or of 0.1. Raises TypeError if it lacks a figure."""
        notes = tuple(map(str, values.get("notes", ())))
        kept = values.get("kept", any(note.startswith(KEPT_NOTE) for note in notes))
        known = {each.name: values[each.name] for each in fields(cls) if each.name in values}
        if kept:
            known.pop("agreement", None)  # release 0.1 compared the labels with themselves
        return cls(**{**known, "notes": notes, "kept": bool(kept)})


@dataclass(frozen=True)
class Scores:
    """evaluation.json: figures on the target's query and gallery, as fractions. See
    `daal.evaluation.EvaluationResult`."""

    map: float
    map_official: float  # by the trapezoid rule
    rank1: float
    rank5: float
    rank10: float
    rank20: float
    num_valid_queries: int

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Scores":
        """Raises KeyError if a figure is absent."""
        return cls(*(values[each.name] for each in fields(cls)))

    def headline(self) -> dict[str, float]:
        """What summary.json says of a model."""
        names = ("map", "rank1", "rank5", "rank10", "map_official")
        return {name: getattr(self, name) for name in names}


@dataclass
class Results:
    """All that a run has found out so far."""

    models: list[Stage] = field(default_factory=list)  # iterations whose model is trained, in order
    # By the iteration that trains on the labels.
    labellings: dict[Stage, Clusters] = field(default_factory=dict)
    scores: dict[Stage, Scores] = field(default_factory=dict)
    selected: Stage | None = None  # the iteration whose model is the result

    def row(self, model: Stage) -> dict[str, Any]:
        """What is known of a model: the labels that it was trained on, and its scores."""
        clusters, scores = self.labellings.get(model), self.scores.get(model)
        return {
            "name": model.name,
            **(asdict(clusters) if clusters else {}),
            **(asdict(scores) if scores else {}),
        }

    def summary(self, seed: int, seconds: float) -> dict[str, Any]:
        """What summary.json holds."""

        def scores_of(model: Stage | None) -> dict[str, float] | None:
            found = None if model is None else self.scores.get(model)
            return found.headline() if found else None

        return {
            "direct_transfer": scores_of(PRETRAIN),
            "adapted": scores_of(self.selected),
            "selected": self.selected.name if self.selected else None,
            "supervised": scores_of(SUPERVISED),
            "iterations": [self.row(model) for model in self.models],
            "seed": seed,
            "seconds": round(seconds, 1),
        }
