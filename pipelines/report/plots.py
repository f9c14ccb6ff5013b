"""The plots of a report, ready to stand in a page."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipelines.report import figures
from pipelines.report.facts import Facts, training_curves
from pipelines.run.stages import FINAL, SUPERVISED


@dataclass(frozen=True)
class Plot:
    """A plot as part of the page, and what it shows."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Series:
    """A figure of each iteration, of its scores or its labelling."""

    figure: str
    name: str
    scale: float = 1.0

    def curve(self, facts: Facts, name: str) -> figures.Curve | None:
        """It over the iterations of a run; None if the run doesn't have it."""
        found = [(model, value) for rows in (facts.scores, facts.labellings)
                 for model, row in rows.items() if model != SUPERVISED
                 if (value := getattr(row, self.figure, None)) is not None]  # fmt: skip
        if not found:
            return None
        # The labelling called final would be the next iteration's.
        x = [len(facts.trained) + 1 if model == FINAL else model.iteration for model, _ in found]
        return figures.Curve(name, x, [self.scale * value for _, value in found])


PLOTS: tuple[tuple[str, str, tuple[Series, ...]], ...] = (
    ("Scores", "percent", (
        Series("map", "mAP", 100), Series("rank1", "Rank-1", 100),
    )),
    ("Clusters", "K", (Series("num_clusters", "K"),)),
    ("Outliers", "percent of images", (Series("outlier_share", "outliers", 100),)),
    ("Agreement with the labels before", "adjusted Rand index", (
        Series("agreement", "agreement"),
    )),
    ("Silhouette", "mean over images", (
        Series("silhouette", "silhouette"),
        Series("cross_camera_silhouette", "across cameras"),
    )),
    ("Clusters and cameras", "percent", (
        Series("one_camera_share", "clusters of one camera", 100),
        Series("cross_camera_share", "pairs of two cameras", 100),
        Series("cross_camera_chance", "the same by chance", 100),
    )),
    ("Labels against the true identities", "0 to 1", (
        Series("ari", "ARI"),
        Series("nmi", "NMI"),
        Series("pair_precision", "precision of pairs"),
        Series("cross_camera_precision", "precision of pairs of two cameras"),
        Series("pair_recall", "recall of pairs"),
    )),
)  # fmt: skip


def iteration_plots(facts: Facts) -> list[Plot]:
    """Scores and figures of the labels over a run's iterations."""
    plots = []
    for title, y_label, series in PLOTS:
        curves = [curve for each in series if (curve := each.curve(facts, each.name))]
        if title == "Scores" and curves and facts.supervised:
            ends = [0, max(1, len(facts.trained))]
            bound = 100 * facts.supervised.map
            curves.append(figures.Curve("mAP, supervised", ends, [bound, bound]))
        if curves:
            plots.append(_plot(title, curves, "iteration", y_label, whole_x=True))
    return plots


def compared_plots(runs: Sequence[tuple[str, Facts]]) -> list[Plot]:
    """The same of several runs: a plot for each figure, with a line for each run."""
    plots = []
    for title, y_label, series in PLOTS:
        for each in series:
            curves = [curve for name, facts in runs if (curve := each.curve(facts, name))]
            if curves:
                heading = title if len(series) == 1 else f"{title}: {each.name}"
                plots.append(_plot(heading, curves, "iteration", y_label, whole_x=True))
    return plots


def training_plots(facts: Facts) -> list[Plot]:
    """Loss terms and learning rate over all steps."""
    found, begins = training_curves(facts.events)
    borders = [place for place in begins if place > 0]
    rate = [figures.Curve("learning rate", *found.pop("lr"))] if "lr" in found else []
    terms = [figures.Curve(name, *curve) for name, curve in found.items() if name != "total"]
    plots = []
    if terms:
        plots.append(_plot("Loss terms", terms, "step", "loss", borders=borders))
    if rate:
        plots.append(_plot("Learning rate", rate, "step", "rate", log_y=True, borders=borders))
    return plots


def inlined(svg: bytes, alt: str, prefix: str) -> Markup:
    """An SVG of `pipelines.report.figures` as part of a page: of any width, its ids its own."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # would be the whole page's
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    head, _, rest = text.partition(">")
    head = re.sub(r' (width|height|xmlns|xmlns:xlink|version)="[^"]*"', "", head)
    # All of it was written by matplotlib, which escapes text.
    return Markup(f'{head} role="img" aria-label="{html.escape(alt)}">{rest}')  # noqa: S704


def _plot(
    title: str, curves: Sequence[figures.Curve], x_label: str, y_label: str, **options: Any
) -> Plot:
    """`figures.curves`, whose options these are, as a part of the page."""
    svg = figures.curves(curves, x_label, y_label, **options)
    alt = "; ".join(
        f"{curve.name} from {float(curve.y[0]):.4g} to {float(curve.y[-1]):.4g}" for curve in curves
    )
    return Plot(title, inlined(svg, f"{title}: {alt}", re.sub(r"\W+", "-", title.lower())))
