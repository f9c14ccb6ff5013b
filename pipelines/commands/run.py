"""The commands that make runs: adapt, pretrain, demo, validate, size, ablate."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from daal.config import Config
from daal.errors import ConfigError, DataError
from pipelines.commands.arguments import (
    AsJson,
    EventsAsJson,
    Overrides,
    Quiet,
    Recipe,
    Verbose,
    ray_errors,
)
from pipelines.commands.report import REPORT, leave_report
from pipelines.show.console import errors, show
from pipelines.tools.shipped import read_config, shipped

if TYPE_CHECKING:  # it imports what takes a second: --help takes none
    from pipelines.tools.validate import Findings


def adapt(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, start nothing.")
    ] = False,
    quiet: Quiet = False,
    as_json: EventsAsJson = False,
    verbose: Verbose = False,
) -> None:
    """Pretrain on the source, then Algorithm 1; the same command continues a stopped run."""
    run_adaptation(read_config(recipe, overrides), dry_run, verbose, quiet=quiet, as_json=as_json)


def pretrain(
    recipe: Recipe,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: EventsAsJson = False,
    verbose: Verbose = False,
) -> None:
    """Train on the source only and score the direct transfer; `adapt` goes on from there."""
    run_adaptation(
        read_config(recipe, overrides),
        verbose=verbose, pretrain_only=True, quiet=quiet, as_json=as_json,
    )  # fmt: skip


def demo(
    out: Annotated[Path, typer.Option(help="Run folder; the drawn images go beside it.")] = Path(
        "runs/demo"
    ),
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: EventsAsJson = False,
    verbose: Verbose = False,
) -> None:
    """Draw two domains of pedestrians and adapt from one to the other, on this machine."""
    from daal.drawn.domains import draw_domains

    images = out.with_name(f"{out.name}-images")
    settings = [f"source.root={images}/source", f"target.root={images}/target", f"out={out}"]
    config = read_config("demo", [*settings, *(overrides or [])])
    draw_domains(images, seed=config.seed)
    run_adaptation(config, verbose=verbose, quiet=quiet, as_json=as_json)


def validate(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check configuration, data and weights in seconds, before any worker starts."""
    run_adaptation(read_config(recipe, overrides), dry_run=True)


def run_adaptation(
    config: Config,
    dry_run: bool = False,
    verbose: bool = False,
    pretrain_only: bool = False,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Validate, start or join Ray, run, print the table (or JSON)."""
    from pipelines.run.folder import RunFolder
    from pipelines.run.kept_config import keep_config
    from pipelines.run.kept_images import kept_images, notes_on_images
    from pipelines.run.stages import ingest_stage
    from pipelines.show.curves import check_tracking, tracked
    from pipelines.tools.validate import check_out
    from pipelines.tools.validate import validate as find

    if as_json and verbose:
        raise ConfigError("--json can't go with -v, which lets Ray write to the output; use one.")
    check_tracking(config.tracking)
    finished: set[str] = set()
    if not dry_run:
        check_out(config.out)
        begun = RunFolder(config.out, create=False)
        finished = {line["stage"] for line in begun.journal()}
        finished -= {
            str(ingest_stage(domain))
            for domain, _ in config.domains()
            if kept_images(begun, domain) is None
        }
    findings = find(config, finished)
    for warning in findings.warnings:
        show("yellow", "warning", warning)
    if dry_run and as_json:
        print(json.dumps(asdict(findings)))
        return
    if dry_run:
        Console().print(table_of(findings))
        return

    from pipelines.adapt import Adaptation
    from pipelines.show.gauges import Gauges
    from pipelines.show.progress import Progress, scores_table
    from pipelines.workers.session import ray_session

    run, name = RunFolder(config.out), config.run_name
    listeners: list[Callable[[dict[str, Any]], None]] = [print_json] if as_json else []

    def record(event: dict[str, Any]) -> None:
        run.append("metrics.jsonl", event)
        for listen in listeners:
            listen(event)

    progress = Progress(record, errors, quiet or as_json, live=not verbose)
    remedy = "the same command continues it, and -v shows what Ray says."
    try:
        with run.claimed(), ray_errors(remedy):
            keep_config(run, config)
            for note in notes_on_images(run, config):
                show("yellow", "note", note)
            num_stages = len(run.journal())
            with (
                ray_session(config.ray, verbose, config.common_batch) as resources,
                tracked(config, run, name, progress.say, progress.note) as track,
            ):
                listeners += [Gauges(name).show, track]
                progress.say(str(resources))
                adaptation = Adaptation(config, run, resources, progress)
                if pretrain_only:
                    adaptation.pretrain_only()
                else:
                    adaptation.adapt()
                if as_json:
                    print_json(adaptation.summary())
                else:
                    Console().print(scores_table(adaptation.scores, adaptation.labellings))
                # A run that was finished before has its report, unless somebody has deleted it.
                is_new = len(run.journal()) > num_stages or not run.exists(REPORT)
                if config.report and is_new and not pretrain_only:
                    leave_report(run, progress.note)
    except (KeyboardInterrupt, SystemExit):
        errors.print("stopped; the same command continues this run.")
        raise
    if not as_json:
        progress.tell(f"run folder: {config.out}")


def table_of(findings: "Findings") -> Table:
    """Images, people and cameras of each split."""
    sampled = " and ".join(f"{num:,} of the {name}" for name, num in findings.num_sampled.items())
    table = Table(
        *("", "images", "people", "cameras"), title="Images found; nothing was started",
        caption=f"decoded to look at: {sampled}",
    )  # fmt: skip
    for domain, counts in findings.counts.items():
        for split, count in counts.items():
            people, cameras = findings.people[domain][split], findings.cameras[domain][split]
            about = (f"{people:,}" if people else "unknown", f"{cameras:,}") if count else ("", "")
            table.add_row(f"{domain} {split}", f"{count:,}", *about)
    return table


def print_json(value: dict[str, Any]) -> None:
    """One line on standard output. A reader that is gone doesn't end the run."""
    try:
        print(json.dumps(value), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def size(
    recipe: Recipe,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """What a run would need, on this many workers and on others: memory, disk, traffic, hours."""
    from pipelines.tools.size import size_of

    found = size_of(read_config(recipe, overrides))
    if as_json:
        print(json.dumps(asdict(found)))
        return
    probe = found.probe
    print(
        f"{found.num_source:,} source and {found.num_target:,} target images to train on, "
        f"{found.num_test:,} to test: {decimal(found.jpeg_bytes)} of JPEG in the object store, "
        f"{decimal(found.decoded_bytes)} more if kept decoded; {decimal(found.disk_bytes)} of disk "
        f"for the run.\nProbe on {probe.device}: {probe.train_images_per_s:.1f} images/s "
        f"in training, {probe.extract_images_per_s:.1f} in extraction, "
        f"{probe.decode_images_per_s:.0f} decoded by a CPU."
    )
    table = Table(
        *("workers", "device memory", "CPUs to decode", "sent a step", "moved an iteration"),
        "time", title="Each worker on a device like the probe's and a node of its own",
    )  # fmt: skip
    for need in found.needs:
        table.add_row(
            str(need.num_workers),
            decimal(need.device_bytes),
            f"{need.decode_cpus:.1f}",
            decimal(need.bytes_per_step),
            decimal(need.bytes_per_iteration),
            f"{need.hours:.1f} h" if need.hours >= 1 else f"{60 * need.hours:.1f} min",
        )
    Console().print(table)


def ablate(
    suite: Annotated[
        str, typer.Argument(help="A shipped suite (table4, fig5, ...), or a YAML file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="For every row, on top of its own settings."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Instead of the one that the suite names.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Instead of the suite's.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="A data set that rows name: market, duke, msmt17."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Default: runs/SUITE.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs, start nothing.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """All rows of one of the paper's tables; images are drawn unless target.root is given."""
    shipped("suite", suite)  # said in no time, where the imports below take seconds
    from pipelines.tools.ablate import configurations, read_suite, run_suite
    from pipelines.tools.suite_table import as_json, markdown, measured_on, plot
    from pipelines.tools.validate import validate as find
    from pipelines.workers.session import ray_session

    table = read_suite(suite)
    folder = out or Path("runs") / Path(suite).stem
    overrides = overrides or []
    folders = {
        name: os.path.expanduser(root)
        for name, _, root in (item.partition("=") for item in data or [])
    }
    named = any(row.target for row in table.rows)
    images = folder.with_name(f"{folder.name}-images")
    drawn = not named and not read_config(recipe or table.recipe, overrides).target.root
    if drawn:
        overrides += [f"source.root={images}/source", f"target.root={images}/target"]
    configs = configurations(
        table.model_copy(update={"recipe": recipe or table.recipe}),
        *(read_config, overrides, seeds or table.seeds),
        *(str(folder), folders),
    )
    if dry_run:
        for (name, seed), config in configs.items():
            print(f"{name}, seed {seed}: {config.out}")
        return
    if drawn:
        from daal.drawn.domains import draw_domains

        draw_domains(images, seed=0)
    some = next(iter(configs.values()))
    kinds = {(config.source.root, config.target.root): config for config in configs.values()}
    findings = [find(config) for config in kinds.values()]
    for warning in dict.fromkeys(text for found in findings for text in found.warnings):
        show("yellow", "warning", warning)
    counts = [found.counts for found in findings]
    for config, found in zip(kinds.values(), counts, strict=True):
        if not (found["target"]["query"] and found["target"]["gallery"]):
            raise DataError(
                f"target.root={config.target.root} has no query or no gallery images, and a suite "
                "is a table of scores; give a data set that has both."
            )
    measured = " | ".join(map(measured_on, kinds.values(), counts))
    remedy = "the same command goes on with what is left, and -v shows what Ray says."
    with ray_errors(remedy), ray_session(some.ray, verbose, some.common_batch):
        results = run_suite(table, configs, str(folder), errors.print)
    text = markdown(table, results, measured)
    (folder / "table.md").write_text(text, encoding="utf-8")
    (folder / "table.json").write_text(as_json(table, results, measured), encoding="utf-8")
    (folder / "table.svg").write_bytes(plot(table, results, measured))
    print(text)
    errors.print(f"{folder}/table.md, table.json and table.svg")
