"""A suite's results as a table beside the paper's numbers, and as a plot."""

import json
from pathlib import Path
from typing import Any

from daal.config import Config, DatasetConfig
from daal.drawn.domains import is_drawn
from pipelines.tools.ablate import Result, Suite


def measured_on(config: Config, counts: dict[str, dict[str, int]]) -> str:
    """The data that the scores are of, with folders by their last name only."""

    def describe(domain: str, dataset: DatasetConfig) -> str:
        kind = "drawn images" if is_drawn(dataset.root) else dataset.layout
        found = ", ".join(f"{number} {split}" for split, number in counts[domain].items())
        return f"{domain} {Path(dataset.root).name} ({kind}: {found})"

    parts = [describe(domain, dataset) for domain, dataset in config.domains()]
    size = f"{config.input.height}x{config.input.width}"
    return f"{'; '.join(parts)}; {config.network.backbone}, {size}"


def write_table(folder: Path, suite: Suite, results: list[Result], measured: str) -> str:
    """Write table.md, table.json and table.svg; returns the first."""
    text = markdown(suite, results, measured)
    table = {"title": suite.title, "measured_on": measured, "rows": [_row(r) for r in results]}
    (folder / "table.md").write_text(text, encoding="utf-8")
    (folder / "table.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    _plot(folder / "table.svg", f"{suite.title}\n{measured}", results)
    return text


def markdown(suite: Suite, results: list[Result], measured: str) -> str:
    """Mean and spread over seeds in percent, with the paper's own columns to the right."""
    pairs = list(dict.fromkeys(pair for result in results for pair in result.row.paper))
    heads = ["", "mAP", "Rank-1", "gain", *(f"paper, {pair}" for pair in pairs)]
    lines = [heads, ["---"] * len(heads)]
    for result in results:
        paper = [result.row.paper.get(pair) for pair in pairs]
        lines.append([
            result.row.name,
            f"{100 * result.mean('map'):.1f} ± {100 * result.spread('map'):.1f}",
            f"{100 * result.mean('rank1'):.1f} ± {100 * result.spread('rank1'):.1f}",
            f"{100 * result.gain():+.1f}",
            *(f"{scores[0]} / {scores[1]}" if scores else "" for scores in paper),
        ])  # fmt: skip
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return (
        f"## {suite.title}\n\nMeasured on {measured}; {len(results[0].scores)} seed(s), mean ± "
        "standard deviation, percent. Gain: mAP above the direct transfer of the same runs. The "
        "paper's columns (mAP / Rank-1) are of its own data sets and settings, for the order of "
        f"rows only.\n\n{table}\n"
    )


def _row(result: Result) -> dict[str, Any]:
    return {
        "name": result.row.name,
        "map": result.mean("map"),
        "map_spread": result.spread("map"),
        "rank1": result.mean("rank1"),
        "rank1_spread": result.spread("rank1"),
        "gain": result.gain(),
        "scores": result.scores,
        "paper": result.row.paper,
    }


def _plot(file: Path, title: str, results: list[Result]) -> None:
    """mAP of each row with its spread."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.5 + 0.4 * len(results)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(
        [result.row.name for result in results],
        [100 * result.mean("map") for result in results],
        xerr=[100 * result.spread("map") for result in results],
        color="#4477aa",
        capsize=3,
    )
    axes.invert_yaxis()
    axes.set_xlabel("mAP, percent")
    axes.set_title(title, fontsize="small", wrap=True)
    figure.savefig(file, format="svg", metadata={"Date": None})
