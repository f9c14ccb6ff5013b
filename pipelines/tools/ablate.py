"""A suite: the rows of one of the paper's tables, each the scores of a run.

Equal configurations are one run, and runs that differ only after pretraining share its checkpoint,
features and scores.
"""

import copy
import hashlib
import json
import os
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from pydantic import Field, ValidationError
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from daal.config import LATER, MAY_CHANGE, NOT_KEPT, Config, RayConfig, Section, marked
from daal.errors import ConfigError, DaalError
from daal.load_config import (
    Origins,
    apply_overrides,
    check_config,
    did_you_mean,
    expand_home_folders,
    read_yaml,
)
from pipelines.adapt import Adaptation
from pipelines.run.folder import RunFolder
from pipelines.run.kept_config import SUMMARY, keep_config
from pipelines.show.progress import Progress
from pipelines.tools.shipped import shipped
from pipelines.workers.resources import cluster_nodes, count_places, place, plan

Say = Callable[[str], None]
Job = tuple[str, Config, str | None]  # its name, and the run whose pretraining it takes over

LAYOUTS = {"market": "market1501", "duke": "dukemtmc", "msmt17": "msmt17"}


class Row(Section):
    """One row of the table."""

    name: str = Field(min_length=1)
    recipe: str | None = Field(None, description="In place of the suite's.")
    settings: list[str] = Field([], description="KEY=VALUE, on top of the suite's.")
    source: str | None = Field(
        None, description="A data set by name, whose folder the user gives; or none: no source."
    )
    target: str | None = None
    score: str = Field(
        "adapted", description="adapted, direct_transfer, supervised, or iteration-NN."
    )
    paper: dict[str, tuple[float, float]] = Field(
        {}, description="The paper's mAP and Rank-1 in percent, by pair of data sets."
    )


class Suite(Section):
    """A table or figure of the paper, or a comparison of ours."""

    title: str
    recipe: str = "demo"
    settings: list[str] = Field([], description="KEY=VALUE for all rows.")
    seeds: int = Field(3, ge=1)
    rows: list[Row] = Field(min_length=1)


@dataclass(frozen=True)
class Result:
    """A row and, for each seed, its scores and those of its direct transfer: map and rank1, 0-1."""

    row: Row
    scores: list[dict[str, float]]
    direct: list[dict[str, float]]

    def mean(self, figure: str) -> float:
        return statistics.fmean(score[figure] for score in self.scores)

    def spread(self, figure: str) -> float:
        """Sample standard deviation over seeds; 0 for one seed."""
        values = [score[figure] for score in self.scores]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def gain(self) -> float:
        """mAP above the direct transfer of the same runs (Table 2's G)."""
        return self.mean("map") - statistics.fmean(score["map"] for score in self.direct)


def read_suite(name: str) -> Suite:
    """A shipped suite by name, or a YAML file. Raises ConfigError with one line per mistake."""
    path = shipped("suite", name)
    try:
        return Suite.model_validate(read_yaml(path, "suite", "title: mine"))
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(path, e) for e in error.errors())) from None


def _sentence(path: Path, mistake: Any) -> str:
    *section, key = (str(part) for part in mistake["loc"])
    where = ".".join([*section, key])
    if mistake["type"] != "extra_forbidden":
        return f"suite {path}: {where}: {mistake['msg']}; correct it there."
    known = Row.model_fields if section else Suite.model_fields
    hint = did_you_mean(key, known) or f"use {', '.join(known)}."
    return f'suite {path}: "{where}" is not a known key; {hint}'


def configurations(
    suite: Suite,
    recipes: Callable[[str], Config],
    settings: Iterable[str],
    seeds: int,
    out: str,
    folders: Mapping[str, str] | None = None,
) -> dict[tuple[str, int], Config]:
    """The run of each row and seed; equal ones have the same `out`.

    `recipes` reads a recipe by name; `folders` are those of data sets that rows name. A row's
    settings override the suite's, the user's override both, and the row's data sets override all.

    Raises:
        ConfigError: a setting is wrong, or a data set's folder isn't given.
    """
    found: dict[tuple[str, int], Config] = {}
    for row in suite.rows:
        base = recipes(row.recipe or suite.recipe).model_dump(mode="json")
        data = _data_settings(row, folders or {})
        for seed in range(seeds):
            origins: Origins = {}
            values = copy.deepcopy(base)
            for layer in (suite.settings, row.settings, settings, [*data, f"seed={seed}"]):
                apply_overrides(values, layer, origins)
            expand_home_folders(values)
            config = check_config(values | {"out": "-"}, origins)
            key = _digest(config.model_dump(mode="json", exclude=marked(NOT_KEPT)))
            found[row.name, seed] = config.model_copy(update={"out": f"{out}/runs/{key}"})
    return found


def _data_settings(row: Row, folders: Mapping[str, str]) -> list[str]:
    found = []
    for domain, name in (("source", row.source), ("target", row.target)):
        if name is None:
            continue
        if domain == "source" and name == "none":
            found += ['source.root=""', "adapt.batch_source=0"]
            continue
        if name not in LAYOUTS:
            raise ConfigError(f'row "{row.name}": {domain} is one of {", ".join(LAYOUTS)}.')
        if name not in folders:
            raise ConfigError(f'row "{row.name}" needs the folder of {name}: --data {name}=DIR.')
        found += [f"{domain}.layout={LAYOUTS[name]}", f"{domain}.root={folders[name]}"]
    return found


def run_suite(
    suite: Suite, configs: dict[tuple[str, int], Config], out: str, say: Say
) -> list[Result]:
    """All runs that aren't finished, as many at a time as the cluster has room for.

    Raises:
        DaalError: runs failed, named with their reasons; the others are finished and kept.
    """
    names: dict[str, list[str]] = {}
    for (name, seed), config in configs.items():
        names.setdefault(config.out, []).append(f"{name}, seed {seed}")
    runs = {config.out: config for config in configs.values()}
    left = [config for uri, config in runs.items() if not RunFolder(uri).exists(SUMMARY)]
    say(f"{len(configs)} rows and seeds: {len(runs)} runs, {len(left)} of them to do")
    first = next(iter(runs.values()))
    room, threads = room_on_cluster(first.ray, first.common_batch)

    def begun_by(config: Config) -> str:
        return f"{out}/pretraining/{pretraining_key(config)}"

    pretrainings = {begun_by(config): config for config in left}
    jobs: list[Job] = [
        (f"pretraining {Path(uri).name}", config.model_copy(update={"out": uri}), None)
        for uri, config in pretrainings.items()
    ]
    _run_all(jobs, room, threads, say)
    jobs = [(" / ".join(names[config.out]), config, begun_by(config)) for config in left]
    _run_all(jobs, room, threads, say)
    return results(suite, configs)


def results(suite: Suite, configs: dict[tuple[str, int], Config]) -> list[Result]:
    """The table's rows from the runs' summaries."""
    found = []
    for row in suite.rows:
        summaries = [
            json.loads(RunFolder(config.out).read(SUMMARY))
            for (name, _), config in configs.items()
            if name == row.name
        ]
        scores = [_score(summary, row.score) for summary in summaries]
        found.append(Result(row, scores, [summary["direct_transfer"] for summary in summaries]))
    return found


def _score(summary: dict[str, Any], which: str) -> dict[str, float]:
    if which in ("adapted", "direct_transfer", "supervised"):
        score = summary[which]
    else:
        score = next((row for row in summary["iterations"] if row["name"] == which), None)
    if score is None or "map" not in score:
        raise ConfigError(
            f"the run has no score {which}; see `score`, `iterations` and `evaluate_every` in the "
            "suite."
        )
    return {"map": score["map"], "rank1": score["rank1"]}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def pretraining_key(config: Config) -> str:
    """The same for runs that can share a pretraining."""
    apart = marked(LATER) | marked(NOT_KEPT) | marked(MAY_CHANGE)
    values = config.model_dump(mode="json", exclude=apart)
    values["num_workers"] = config.ray.num_workers
    values["target_only"] = config.target_only
    return _digest(values)


def room_on_cluster(config: RayConfig, common_batch: int = 0) -> tuple[int, int | None]:
    """How many runs fit on the cluster side by side, and the threads of a worker then."""
    nodes = cluster_nodes()
    alone = plan(nodes, config, common_batch)
    workers = alone.least_workers
    cpus_of_run = workers * config.cpus_per_worker + config.data_cpus
    by_cpus = int(sum(node.cpus for node in nodes) / cpus_of_run + 1e-9)
    number = max(1, min(by_cpus, count_places(nodes, config, alone.use_gpu) // workers))
    if number == 1:
        return number, None
    as_one_run = config.model_copy(update={
        "num_workers": number * workers, "min_workers": None, "use_gpu": alone.use_gpu,
        "data_cpus": number * config.data_cpus,
    })  # fmt: skip
    return number, plan(nodes, as_one_run).threads


def _run_all(jobs: list[Job], room: int, threads: int | None, say: Say) -> None:
    """Run them as Ray tasks, `room` at a time. Raises DaalError at the end if any has failed."""
    waiting, failed = list(reversed(jobs)), []
    running: dict[Any, str] = {}
    while waiting or running:
        while waiting and len(running) < room:
            name, config, pretraining = waiting.pop()
            say(f"{name}: started in {config.out}")
            here = NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            )
            task = _run.options(name=name, scheduling_strategy=here)
            running[task.remote(config, pretraining, os.getcwd(), threads)] = name
        (done,), _ = ray.wait(list(running), num_returns=1)
        name = running.pop(done)
        try:
            say(f"{name}: {ray.get(done)}")
        except RayTaskError as error:
            if not isinstance(error.cause, DaalError):
                raise
            failed.append(f"{name}: {error.cause}")
            say(failed[-1])
    if failed:
        raise DaalError(
            f"{len(failed)} of {len(jobs)} runs failed; the same command continues with them.\n"
            + "\n".join(failed)
        )


@ray.remote(num_cpus=0, max_retries=0)
def _run(config: Config, pretraining: str | None, directory: str, threads: int | None) -> str:
    """One run in a process of its own; it writes its messages to log.txt in the run folder."""
    os.chdir(directory)  # relative paths begin there
    folder = RunFolder(config.out)
    with open(folder.path("log.txt") if folder.is_local else os.devnull, "a") as log:
        progress = Progress(lambda event: folder.append("metrics.jsonl", event), Console(file=log))
        with folder.claimed():
            resources = place(config.ray, config.common_batch, threads)
            adaptation = Adaptation(config, folder, resources, progress)
            if pretraining is None:
                adaptation.pretrain_only()
                return "done"
            keep_config(folder, config)
            folder.adopt(RunFolder(pretraining))
            summary = adaptation.adapt()
    score = summary["adapted"] or summary["supervised"] or summary["direct_transfer"]
    return f"mAP {score['map']:.1%}  Rank-1 {score['rank1']:.1%}"
