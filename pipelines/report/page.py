"""A run as one HTML page that needs nothing else: no network, no scripts, no other file.

What a part of it needs may be gone, or not there yet; then the page says so in that part's place.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import numpy as np
import torch

from daal.data.records import SPLITS, Domain
from daal.drawn.domains import is_drawn
from daal.errors import DaalError, DataError
from daal.load_config import flat
from daal.trained_model import TrainedModel, load_trained
from pipelines.report import facts as report_data
from pipelines.report.attention_and_clusters import Attention, attention_on, clusters
from pipelines.report.facts import Facts, Row
from pipelines.report.feature_map import feature_map
from pipelines.report.images import columns
from pipelines.report.plots import compared_plots, iteration_plots, training_plots
from pipelines.report.ranks import retrieval
from pipelines.run.find_checkpoint import checkpoint_of
from pipelines.run.folder import RunFolder
from pipelines.run.kept_config import DOMAINS
from pipelines.run.results import Clusters, Scores
from pipelines.run.stages import PRETRAIN, SUPERVISED, Stage, ingest_stage

T = TypeVar("T")


@dataclass(frozen=True)
class Absent:
    """A part that can't be shown, and why: one sentence."""

    reason: str


@dataclass(frozen=True)
class Report:
    """A page, and a sentence for each part that failed for an unforeseen reason."""

    html: str
    failures: list[str]


def report(run: RunFolder) -> Report:
    """The page of a run, finished or not.

    Raises:
        ConfigError: the folder isn't a run's.
        DataError: what it says of itself is damaged.
        StorageError: it can't be read.
    """
    parts = Parts(run)
    with _readable(run.uri):
        facts = report_data.read_facts(run)
        result = facts.selected or PRETRAIN
        model = parts.make("the model", lambda: _model(run))
        known_model = None if isinstance(model, Absent) else model

        def attention(domain: Domain) -> Attention | Absent:
            roots = {name: dataset.root for name, dataset in facts.config.domains()}
            if domain not in roots:
                return Absent("This run had no source.")
            if isinstance(model, Absent):
                return model
            return parts.make(
                f"attention on the {domain}",
                lambda: attention_on(run, model, domain, roots[domain]),
            )

        page = _render(
            "report.html.j2",
            facts=facts,
            result=result,
            rows=_score_rows(facts),
            doubts=report_data.doubts(facts),
            retrieval=parts.make("the rank lists", lambda: retrieval(run, facts.config, result)),
            plots=iteration_plots(facts),
            clusters=parts.make("the sample of clusters", lambda: clusters(run, facts)),
            map=parts.make("the map", lambda: feature_map(run, facts, result, known_model)),
            attention={domain: attention(domain) for domain in DOMAINS},
            training=training_plots(facts),
            times=report_data.times(facts.journal),
            data=parts.make("the table of data", lambda: _data(run, facts)),
            settings=flat(facts.values),
        )
    return Report(page, parts.failures)


def comparison(runs: Sequence[RunFolder]) -> Report:
    """Runs side by side on one page. Raises as `report` does."""
    with _readable(", ".join(run.uri for run in runs)):
        facts = [report_data.read_facts(run) for run in runs]
        names = report_data.short_names([run.base for run in runs])
        named = list(zip(names, facts, strict=True))
        targets = {_target_hash(some) for some in facts}
        page = _render(
            "comparison.html.j2",
            runs=named,
            same_data=len(targets) == 1 and None not in targets,
            plots=compared_plots(named),
            seconds=[sum(time for _, time in report_data.times(some.journal)) for some in facts],
            differences=report_data.different_settings(facts),
        )
    return Report(page, [])


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    """Raises DataError for whatever damaged or foreign JSON files cause inside."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError,
            jinja2.TemplateError) as error:  # fmt: skip
        raise DataError(
            f"{uri}: no page can be made of its JSON files ({type(error).__name__}: {error}); "
            "they are damaged or of another version of daal: use that version, or make the run "
            "again."
        ) from error


class Parts:
    """Makes the parts of a page. Where one can't be made, the others are, and the page says why."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.failures: list[str] = []

    def make(self, what: str, make: Callable[[], T]) -> T | Absent:
        try:
            return make()
        except DaalError as error:
            # Reports are shown to others: not where on this machine the run lies.
            return Absent(f"{error}".replace(f"{self.run.base}/", "").rstrip(".") + ".")
        except Exception as error:  # anything may be wrong with files that have lain about
            first = (str(error) or "no message").splitlines()[0]
            self.failures.append(f"{what} could not be made: {type(error).__name__}: {first}")
            return Absent(f"This part could not be made ({type(error).__name__}: {first}).")


def _render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["absent"] = lambda value: isinstance(value, Absent)
    environment.filters |= {
        "percent": lambda value: f"{100 * value:.1f}",
        "signed": lambda value: f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}"),
        "thousands": lambda value: f"{value:,}",
        "duration": duration,
        "setting": lambda value: (
            value if isinstance(value, str) else json.dumps(value, default=str)
        ),
    }
    made = time.strftime("%-d %B %Y, %H:%M")
    return environment.get_template(template).render(made=made, **values)


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _model(run: RunFolder) -> TrainedModel:
    """The run's result, on the GPU if there is one."""
    with checkpoint_of(run.uri) as (folder, _):
        model = load_trained(folder)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _score_rows(facts: Facts) -> list[tuple[Stage, Scores | None, Clusters | None]]:
    """Each model, its scores, and the labels that it was trained with."""
    models = dict.fromkeys([*facts.scores, *facts.trained])
    order = sorted(models, key=lambda model: (model == SUPERVISED, model.iteration))
    return [(model, facts.scores.get(model), facts.labellings.get(model)) for model in order]


def _data(run: RunFolder, facts: Facts) -> list[Row]:
    """A row for each domain: what was read."""
    found = []
    for domain, dataset in facts.config.domains():
        about = columns(run, f"images/{domain}.parquet", ("split", "pid", "camid"))
        bad = columns(run, f"images/{domain}-quarantine.parquet", ["path"])["path"]
        train = about["split"] == "train"
        found.append({
            "domain": domain,
            "name": "/".join(Path(dataset.root).parts[-2:]),
            "kind": "drawn images" if is_drawn(dataset.root) else f"layout {dataset.layout}",
            "counts": {split: int((about["split"] == split).sum()) for split in SPLITS},
            "people": len(np.unique(about["pid"][train & (about["pid"] > 0)])),
            "cameras": len(np.unique(about["camid"][about["camid"] >= 0])),
            "unreadable": len(bad),
        })  # fmt: skip
    return found


def _target_hash(facts: Facts) -> str | None:
    for line in reversed(facts.journal):
        if line["stage"] == str(ingest_stage("target")):
            return str(line["files"]["images/target.parquet"]["sha256"])
    return None
