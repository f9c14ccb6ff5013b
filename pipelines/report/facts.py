"""What a run folder says of itself in JSON and YAML: scores, labellings, training, times."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from daal.config import Config
from daal.errors import ConfigError
from daal.load_config import differences
from pipelines.run import label_health
from pipelines.run.events import METRICS, TrainingStep, event_of
from pipelines.run.folder import RunFolder
from pipelines.run.kept_config import SUMMARY, checked, kept_settings
from pipelines.run.results import Clusters, Scores
from pipelines.run.stages import FINAL, PRETRAIN, SUPERVISED, Stage
from pipelines.show.curves import Points
from pipelines.training.made_on import workers_text

Row = dict[str, Any]
Curve = tuple[list[float], list[float]]  # x and y
POINTS = 400  # of a curve: more than a screen shows
# The part of a stage, and what a reader calls it.
WORK = {
    "train": "training",
    "extract": "features of the target",
    "extract-result": "features of the target",
    "source-distance": "distances from the source",
    "estimate": "pseudo-labels",
    "evaluate": "scores",
}


@dataclass(frozen=True)
class Facts:
    """A run folder without its images, features and weights."""

    name: str  # the folder's own: reports are shown to others
    config: Config
    values: Row  # config.yaml as it was written
    summary: Row | None  # None: the run isn't finished
    scores: dict[Stage, Scores]  # of pretraining, iterations and the supervised bound
    labellings: dict[Stage, Clusters]  # of iterations; and the last one's, see `Stage`
    trained: list[Stage]  # iterations whose training is finished
    selected: Stage | None  # whose model is the result; of an unfinished run, the last one trained
    events: list[Row]  # metrics.jsonl
    journal: list[Row]

    @property
    def direct(self) -> Scores | None:
        return self.scores.get(PRETRAIN)

    @property
    def adapted(self) -> Scores | None:
        return self.scores.get(self.selected) if self.selected else None

    @property
    def supervised(self) -> Scores | None:
        return self.scores.get(SUPERVISED)

    @property
    def last_labelling(self) -> tuple[Stage, Clusters] | None:
        return list(self.labellings.items())[-1] if self.labellings else None


def read_facts(run: RunFolder) -> Facts:
    """All of it that is there.

    Raises:
        ConfigError: the folder isn't a run's.
        StorageError: it can't be read.
    """
    values = kept_settings(run)
    if values is None:
        raise ConfigError(
            f"{run.uri} is not a run folder: there is no config.yaml in it; give the folder that "
            "daal adapt or daal demo wrote (its out=)."
        )
    journal = run.journal()
    stages = [stage for line in journal if (stage := Stage.parse(line["stage"]))]
    models = _models(stages)
    scores: dict[Stage, Scores] = {}
    labellings: dict[Stage, Clusters] = {}
    for model in models:
        found = _json(run, model.file("evaluation.json"))
        if found is not None and found["num_valid_queries"]:
            scores[model] = Scores.from_json(found)
        found = _json(run, model.file("clusters.json"))
        if found is not None:
            labellings[model] = Clusters.from_json(found)
    summary = _json(run, SUMMARY)
    trained = [model for model in models
               if model.kind == "iteration" and model.at("train") in stages]  # fmt: skip
    selected = Stage.parse((summary or {}).get("selected"))
    return Facts(
        name=PurePosixPath(run.base).name,
        config=checked(values),
        values=values,
        summary=summary,
        scores=scores,
        labellings=labellings,
        trained=trained,
        selected=selected or (trained[-1] if trained else None),
        events=run.lines(METRICS),
        journal=journal,
    )


def different_settings(runs: Sequence[Facts]) -> dict[str, list[Any]]:
    """The keys in which runs differ, each with its value in every one of them."""
    left_out = set() if all("ray" in run.values for run in runs) else {"ray"}  # as 0.1 did
    return differences([{k: v for k, v in run.values.items() if k not in left_out} for run in runs])


def training_curves(events: Sequence[Row]) -> tuple[dict[str, Curve], list[int]]:
    """Loss terms and the learning rate (lr) by name, over the steps of pretraining and then of all
    iterations; and the step at which each iteration begins. Long curves are thinned by means.

    A term that is always 0 has no curve.
    """
    points = Points()
    curves: dict[str, Curve] = {}
    for event in map(event_of, events):
        if not isinstance(event, TrainingStep):
            continue
        for point in points.of(event):
            if point.group not in ("pretrain", "adapt"):
                continue
            first = points.num_steps.get(PRETRAIN, 0) if point.group == "adapt" else 0
            for name, value in point.values.items():
                if name == "lr" or name.startswith("loss/"):
                    x, y = curves.setdefault(name.removeprefix("loss/"), ([], []))
                    x.append(first + point.x)
                    y.append(value)
    place = points.num_steps.get(PRETRAIN, 0)
    begins: list[int] = []
    for model, num_steps in points.num_steps.items():
        if model.kind == "iteration":
            begins.append(place)
            place += num_steps
    thinned = {name: (_thinned(x), _thinned(y)) for name, (x, y) in curves.items() if any(y)}
    return thinned, begins


def doubts(facts: Facts) -> list[str]:
    """Reasons not to trust the model or the figures; a sentence each."""
    found = []
    if facts.summary is None:
        last = facts.journal[-1]["stage"] if facts.journal else "none"
        found.append(
            f"The run is not finished; the last stage that is done: {last}. All figures are as "
            "of then."
        )
    direct, adapted = facts.direct, facts.adapted
    if direct and adapted and adapted.map <= direct.map:
        found.append("Adapting did not help: the adapted model scores no better than before it.")
    iterations = [model for model in facts.scores if model.kind == "iteration"]
    best = max(iterations, key=lambda model: facts.scores[model].map, default=None)
    if best and adapted and facts.scores[best].map > adapted.map + 0.01:
        found.append(
            f"{best} scored better than the result ({facts.scores[best].map:.1%} mAP against "
            f"{adapted.map:.1%}). Choosing it by this score would need identities that a user "
            "of unlabelled cameras doesn't have."
        )
    if adapted and adapted.num_valid_queries < 100:
        found.append(
            f"Only {adapted.num_valid_queries} queries could be scored: the figures are rough."
        )
    if len(kinds := _workers(facts.journal)) > 1:
        found.append(
            f"Trained on {' and on '.join(kinds)}: a run on the same workers throughout would "
            "differ in rounding and in the groups of images that BatchNorm takes together."
        )
    before = None
    for stage, clusters in facts.labellings.items():
        warnings = label_health.warnings(clusters, before, facts.config.cluster)
        found += [f"{stage}: {note}" for note in (*clusters.notes, *warnings)]
        before = clusters
    if before and before.outlier_share > 0.5:
        found.append(
            f"Most training images are outliers ({before.outlier_share:.0%} at the end): the "
            "model has learnt from the others only."
        )
    if before and before.agreement is not None and before.agreement < 0.7:
        found.append(
            "The labels were still changing when the run ended (agreement with the ones before: "
            f"{before.agreement:.2f}): more iterations may help."
        )
    return found


def times(journal: Sequence[Row]) -> list[tuple[str, float]]:
    """Seconds by kind of work, the longest first; if a stage was repeated, the last time counts."""
    totals: dict[str, float] = {}
    for name, seconds in {line["stage"]: float(line["seconds"]) for line in journal}.items():
        stage = Stage.parse(name)
        if stage is None or stage.part == "drop":
            continue
        kind = {"ingest": "reading the images", "supervised": "the supervised bound"}.get(
            stage.kind, WORK.get(stage.part, stage.part)
        )
        totals[kind] = totals.get(kind, 0.0) + seconds
    return sorted(totals.items(), key=lambda item: -item[1])


def _workers(journal: Sequence[Row]) -> list[str]:
    """What trainings were made on, each kind once. Release 0.1 did not record it."""
    trained = {line["stage"]: line for line in journal if "workers" in line}
    return list(dict.fromkeys(workers_text(line) for line in trained.values()))


def short_names(paths: Sequence[str]) -> list[str]:
    """What is left of each path without the folder that all are in."""
    inside = [path.strip("/") for path in paths]
    common = os.path.commonpath([os.path.dirname(path) for path in inside])
    return [os.path.relpath(path, common) for path in inside]


def _models(stages: Sequence[Stage]) -> list[Stage]:
    """In the order of a run; the labelling "final" is last, or none if iterations followed it."""
    models = [stage.model for stage in stages if stage.kind != "ingest"]
    found = list(dict.fromkeys(model for model in models if model != FINAL))
    labelled = [stage.model for stage in stages if stage.part == "estimate"]
    return [*found, FINAL] if labelled[-1:] == [FINAL] else found


def _json(run: RunFolder, name: str) -> Row | None:
    """None where there is none, or where it is cut off."""
    if not run.exists(name):
        return None
    try:
        found = json.loads(run.read(name))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _thinned(values: list[float]) -> list[float]:
    size = -(-len(values) // POINTS)
    if size <= 1:
        return values
    chunks = (values[start : start + size] for start in range(0, len(values), size))
    return [sum(chunk) / len(chunk) for chunk in chunks]
