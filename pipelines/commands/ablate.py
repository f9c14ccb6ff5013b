"""The command `ablate`: all rows of a table, each a run."""

import os
from pathlib import Path
from typing import Annotated

import typer

from daal.errors import DataError
from pipelines.commands.arguments import Verbose, ray_errors
from pipelines.show.console import errors, show
from pipelines.tools.shipped import read_config, shipped


def ablate(
    suite: Annotated[
        str, typer.Argument(help="A shipped suite (table4, fig5, ...), or a YAML file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Settings for all rows; they replace the rows' own."
        ),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe in place of the suite's.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of each row (default: the suite's).")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="The folder of a data set that rows name: market, duke or msmt17.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write (runs/SUITE).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs.")] = False,
    verbose: Verbose = False,
) -> None:
    """Run all rows of a suite and write their table. Without target.root, images are drawn."""
    shipped("suite", suite)  # before the imports below, which take seconds
    from daal.drawn.domains import draw_domains
    from pipelines.tools.ablate import configurations, read_suite, run_suite
    from pipelines.tools.suite_table import measured_on, write_table
    from pipelines.tools.validate import validate
    from pipelines.workers.session import ray_session

    table = read_suite(suite)
    table = table.model_copy(update={"recipe": recipe or table.recipe})
    folder = out or Path("runs") / Path(suite).stem
    settings = list(overrides or [])
    pairs = (item.partition("=") for item in data or [])
    folders = {name: os.path.expanduser(root) for name, _, root in pairs}
    images = folder.with_name(f"{folder.name}-images")
    is_drawn = not (
        any(row.target for row in table.rows) or read_config(table.recipe, settings).target.root
    )
    if is_drawn:
        settings += [f"source.root={images}/source", f"target.root={images}/target"]
    configs = configurations(
        table, read_config, settings, seeds or table.seeds, str(folder), folders
    )
    if dry_run:
        for (name, seed), config in configs.items():
            print(f"{name}, seed {seed}: {config.out}")
        return
    if is_drawn:
        draw_domains(images, seed=0)
    by_data = {(config.source.root, config.target.root): config for config in configs.values()}
    found = [(config, validate(config)) for config in by_data.values()]
    for warning in dict.fromkeys(text for _, each in found for text in each.warnings):
        show("yellow", "warning", warning)
    for config, each in found:
        if not (each.counts["target"]["query"] and each.counts["target"]["gallery"]):
            raise DataError(
                f"target.root={config.target.root} has no query or no gallery images, and a suite "
                "is a table of scores; give a data set that has both."
            )
    some = next(iter(configs.values()))
    remedy = "the same command continues with what is left, and -v shows what Ray says."
    with ray_errors(remedy), ray_session(some.ray, verbose, some.common_batch):
        results = run_suite(table, configs, str(folder), errors.print)
    measured = " | ".join(measured_on(config, each.counts) for config, each in found)
    print(write_table(folder, table, results, measured))
    errors.print(f"{folder}/table.md, table.json and table.svg")
