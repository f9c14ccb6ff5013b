"""What a run folder says of itself in JSON and YAML: scores, labellings, training, times."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from daal.config import Config
from daal.errors import ConfigError
from daal.load_config import differences
from pipelines.run import label_health
from pipelines.run.folder import RunFolder, workers_text
from pipelines.run.kept_config import checked, kept_settings

Row = dict[str, Any]
Points = tuple[list[float], list[float]]  # x and y of a curve
POINTS = 400  # of a curve: more than a screen shows
# A stage's last word, in the order of a run, and what a reader calls it.
WORK = {
    "ingest": "reading the images",
    "train": "training",
    "extract": "features of the target",
    "source-distance": "distances from the source",
    "estimate": "pseudo-labels",
    "evaluate": "scores",
}


@dataclass(frozen=True)
class Facts:
    """A run folder without its images, features and weights."""

    name: str  # the folder's own: reports are shown to others
    uri: str
    config: Config
    values: dict[str, Any]  # config.yaml as it was written
    summary: Row | None  # None: the run isn't finished
    scores: list[Row]  # of pretraining, each iteration and the supervised bound: `name`, map, ...
    labellings: list[Row]  # of each iteration: `name`, num_clusters, ...
    events: list[Row]  # metrics.jsonl
    journal: list[Row]

    @property
    def direct(self) -> Row | None:
        return self.score("pretrain")

    @property
    def adapted(self) -> Row | None:
        return self.score(self.selected or "")

    @property
    def supervised(self) -> Row | None:
        return self.score("supervised")

    @property
    def selected(self) -> str | None:
        """The iteration whose model is the result; of an unfinished run, the last one trained."""
        if self.summary and self.summary.get("selected"):
            return str(self.summary["selected"])
        return self.trained[-1] if self.trained else None

    @property
    def trained(self) -> list[str]:
        """Iterations whose training is finished."""
        stages = [line["stage"] for line in self.journal]
        return [
            stage.removesuffix("/train")
            for stage in dict.fromkeys(stages)
            if stage.startswith("iteration-") and stage.endswith("/train")
        ]

    def score(self, name: str) -> Row | None:
        return next((row for row in self.scores if row["name"] == name), None)


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
    names = _parts_of_the_run([line["stage"] for line in journal])
    scores = [_named(run, name, "evaluation.json") for name in names]
    labellings = [_named(run, name, "clusters.json") for name in names]
    return Facts(
        name=PurePosixPath(run.base).name,
        uri=run.uri,
        config=checked(values),
        values=values,
        summary=_json(run, "summary.json"),
        scores=[row for row in scores if row and row["num_valid_queries"]],
        labellings=[label_health.as_found(row) for row in labellings if row],
        events=run.lines("metrics.jsonl"),
        journal=journal,
    )


def different_settings(runs: Sequence[Facts]) -> dict[str, list[Any]]:
    """The keys in which runs differ, each with its value in every one of them."""
    left_out = set() if all("ray" in run.values for run in runs) else {"ray"}  # as 0.1 did
    return differences([{k: v for k, v in run.values.items() if k not in left_out} for run in runs])


def training_curves(events: Sequence[Row]) -> tuple[dict[str, Points], list[float]]:
    """Loss terms and the learning rate (lr) by name, over the steps of the whole run; and the step
    at which each training begins. Long curves are thinned by means.

    Of a step that was made twice, after a restart, the later is taken. A term that is 0 throughout
    a training isn't part of it. The supervised bound's training isn't one of the algorithm's.
    """
    trainings: dict[str, dict[int, Row]] = {}
    for event in events:
        if "loss" in event and event["stage"] != "supervised":
            trainings.setdefault(event["stage"], {})[event["step"]] = event
    found: dict[str, Points] = {}
    begins: list[float] = []
    before = 0.0
    for steps in trainings.values():
        begins.append(before)
        rows = [steps[step] for step in sorted(steps)]
        terms = {name for row in rows for name, value in row["loss"].items() if value}
        for row in rows:
            values = {name: value for name, value in row["loss"].items() if name in terms}
            for name, value in [*values.items(), ("lr", row["lr"])]:
                x, y = found.setdefault(name, ([], []))
                x.append(before + row["step"])
                y.append(value)
        before += rows[-1]["steps"]
    return {name: (_thinned(x), _thinned(y)) for name, (x, y) in found.items()}, begins


def doubts(facts: Facts) -> list[str]:
    """What speaks against trusting the model, or the figures; a sentence each."""
    found = []
    if facts.summary is None:
        last = facts.journal[-1]["stage"] if facts.journal else "none"
        found.append(
            f"The run is not finished; the last stage that is done: {last}. All figures are as "
            "of then."
        )
    direct, adapted = facts.direct, facts.adapted
    if direct and adapted and adapted["map"] <= direct["map"]:
        found.append("Adapting did not help: the adapted model scores no better than before it.")
    iterations = [row for row in facts.scores if row["name"].startswith("iteration-")]
    best = max(iterations, key=lambda row: row["map"], default=None)
    if best and adapted and best["map"] > adapted["map"] + 0.01:
        found.append(
            f"{best['name']} scored better than the result ({best['map']:.1%} mAP against "
            f"{adapted['map']:.1%}). Choosing it by this score would need identities that a user "
            "of unlabelled cameras doesn't have."
        )
    if adapted and adapted.get("num_valid_queries", 100) < 100:
        found.append(
            f"Only {adapted['num_valid_queries']} queries could be scored: the figures are rough."
        )
    if len(kinds := _workers(facts.journal)) > 1:
        found.append(
            f"Trained on {' and on '.join(kinds)}: a run on the same workers throughout would "
            "differ in rounding and in the groups of images that BatchNorm takes together."
        )
    before = None
    for clusters in facts.labellings:
        name = clusters["name"]
        notes = [
            *clusters.get("notes", ()),
            *label_health.warnings(clusters, before, facts.config.cluster),
        ]
        found += [f"{name}: {note}" for note in notes]
        before = clusters
    if before and before["outlier_share"] > 0.5:
        found.append(
            f"Most training images are outliers ({before['outlier_share']:.0%} at the end): the "
            "model has learnt from the others only."
        )
    if before and before.get("agreement", 1.0) < 0.7:
        found.append(
            "The labels were still changing when the run ended (agreement with the ones before: "
            f"{before['agreement']:.2f}): more iterations may help."
        )
    return found


def times(journal: Sequence[Row]) -> list[tuple[str, float]]:
    """Seconds by kind of work, in the order of a run; the last making of each stage counts."""
    stages = {line["stage"]: float(line["seconds"]) for line in journal}
    totals: dict[str, float] = {}
    for stage, seconds in stages.items():
        first, _, last = stage.partition("/")
        kind = WORK.get("ingest" if first == "ingest" else last, last)
        if first == "supervised":
            kind = "the supervised bound"
        totals[kind] = totals.get(kind, 0.0) + seconds
    return sorted(totals.items(), key=lambda item: -item[1])


def _workers(journal: Sequence[Row]) -> list[str]:
    """What trainings were made on, each kind once. Release 0.1 did not record it."""
    trained = {line["stage"]: line for line in journal if "workers" in line}
    return list(dict.fromkeys(workers_text(line) for line in trained.values()))


def short_names(uris: Sequence[str]) -> list[str]:
    """As many last parts of each path as tell the runs apart; numbers, if none do."""
    parts = [PurePosixPath(uri.rstrip("/")).parts for uri in uris]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(part[-1:])} ({number})" for number, part in enumerate(parts, 1)]


def _parts_of_the_run(stages: Sequence[str]) -> list[str]:
    """Names before the stages' slashes, in the order of a run.

    "final" is a labelling after the last iteration, made to judge that one's model. It is none any
    more once the run was given more iterations.
    """
    names = list(dict.fromkeys(stage.partition("/")[0] for stage in stages))
    if "final" in names:
        names.remove("final")
        last = len(stages) - 1 - list(reversed(stages)).index("final/estimate")
        before = {stage.partition("/")[0] for stage in stages[:last]}
        if all(name in before for name in names if name.startswith("iteration-")):
            names.append("final")
    return names


def _named(run: RunFolder, name: str, file: str) -> Row | None:
    found = _json(run, f"{name}/{file}")
    return None if found is None else {"name": name, **found}


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
