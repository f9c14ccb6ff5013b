"""The commands around one run: adapt, pretrain, demo, validate, size."""

import json
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from daal.config import Config
from daal.errors import ConfigError
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
from pipelines.tools.shipped import read_config

if TYPE_CHECKING:  # it imports what takes a second: --help takes none
    from pipelines.tools.validate import Findings


def adapt(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check settings and data, like daal validate.")
    ] = False,
    quiet: Quiet = False,
    as_json: EventsAsJson = False,
    verbose: Verbose = False,
) -> None:
    """Pretrain on the source, then run Algorithm 1. The same command continues a stopped run."""
    config = read_config(recipe, overrides)
    if dry_run:
        show_findings(config, as_json)
    else:
        run_adaptation(config, verbose, quiet, as_json)


def pretrain(
    recipe: Recipe,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: EventsAsJson = False,
    verbose: Verbose = False,
) -> None:
    """Train on the source only and score the direct transfer. `daal adapt` continues from there."""
    run_adaptation(read_config(recipe, overrides), verbose, quiet, as_json, pretrain_only=True)


def demo(
    out: Annotated[
        Path, typer.Option(help="The run folder; the drawn images are put beside it.")
    ] = Path("runs/demo"),
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: EventsAsJson = False,
    verbose: Verbose = False,
) -> None:
    """Draw two domains of pedestrians and adapt a model from one to the other."""
    from daal.drawn.domains import draw_domains

    images = out.with_name(f"{out.name}-images")
    settings = [f"source.root={images}/source", f"target.root={images}/target", f"out={out}"]
    config = read_config("demo", [*settings, *(overrides or [])])
    draw_domains(images, seed=config.seed)
    run_adaptation(config, verbose, quiet, as_json)


def validate(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check settings, data sets and weights in seconds, without starting anything."""
    show_findings(read_config(recipe, overrides))


def show_findings(config: Config, as_json: bool = False) -> None:
    """Validate and print what a run would read."""
    findings = validated(config)
    if as_json:
        print(json.dumps(asdict(findings)))
        return
    sampled = " and ".join(f"{num:,} of the {name}" for name, num in findings.num_sampled.items())
    table = Table(
        "", "images", "people", "cameras", title="Images found; nothing was started",
        caption=f"decoded to look at: {sampled}",
    )  # fmt: skip
    for domain, counts in findings.counts.items():
        for split, count in counts.items():
            people, cameras = findings.people[domain][split], findings.cameras[domain][split]
            about = [f"{known:,}" if known else "unknown" for known in (people, cameras)]
            table.add_row(f"{domain} {split}", f"{count:,}", *(about if count else ("", "")))
    Console().print(table)


def validated(config: Config, finished: Collection[str] = ()) -> "Findings":
    """What validation found, its warnings shown. `finished`: stages that a run need not repeat."""
    from pipelines.show.trackers import check_tracking
    from pipelines.tools.validate import validate

    check_tracking(config.tracking)
    findings = validate(config, finished)
    for warning in findings.warnings:
        show("yellow", "warning", warning)
    return findings


def ingest(
    recipe: Recipe, overrides: Overrides = None, verbose: Verbose = False, quiet: Quiet = False
) -> None:
    """Read the images of both sets into the store that all runs share; runs do it otherwise.

    The store lies at store=, or in daal-images beside out=. The same command continues a stopped
    one.
    """
    from functools import partial

    from pipelines.images.ingest import ingest as read_images
    from pipelines.show.progress import Progress
    from pipelines.tools.validate import check_out, check_root
    from pipelines.workers.session import ray_session

    config = read_config(recipe, overrides)
    check_out(config.out)
    for domain, settings in config.domains():
        check_root(domain, settings)
    progress = Progress(console=errors, quiet=quiet)
    remedy = "the same command continues it, and -v shows what Ray says."
    with ray_errors(remedy), ray_session(config.ray, verbose):
        for domain, _ in config.domains():
            images, aside = read_images(config, domain, partial(progress.tasks, f"{domain} shards"))
            progress.say(
                f"{domain}: {len(images.table):,} images in {images.store.folder}"
                + (f"; {len(aside):,} can't be read and are left out" if len(aside) else "")
            )


def run_adaptation(
    config: Config,
    verbose: bool = False,
    quiet: bool = False,
    as_json: bool = False,
    pretrain_only: bool = False,
) -> None:
    """Validate, start or join Ray, run, print the table (or JSON)."""
    from pipelines.run.folder import RunFolder
    from pipelines.run.kept_config import keep_config
    from pipelines.run.kept_images import kept_images, notes_on_images
    from pipelines.run.stages import ingest_stage
    from pipelines.show.trackers import tracked
    from pipelines.tools.validate import check_out

    if as_json and verbose:
        raise ConfigError("--json can't go with -v, which lets Ray write to the output; use one.")
    check_out(config.out)
    begun = RunFolder(config.out, create=False)
    lost = {
        str(ingest_stage(domain))
        for domain, _ in config.domains()
        if kept_images(begun, domain) is None
    }
    validated(config, {line["stage"] for line in begun.journal()} - lost)

    # They import Ray, which takes seconds.
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
                results = adaptation.results
                if pretrain_only:
                    adaptation.pretrain_only()
                else:
                    adaptation.adapt()
                if as_json:
                    print_json(adaptation.summary())
                else:
                    Console().print(scores_table(results.scores, results.labellings))
                # A run that was finished before has its report, unless it was deleted.
                is_new = len(run.journal()) > num_stages or not run.exists(REPORT)
                if config.report and is_new and not pretrain_only:
                    leave_report(run, progress.note)
    except (KeyboardInterrupt, SystemExit):
        errors.print("stopped; the same command continues this run.")
        raise
    if not as_json:
        progress.say(f"run folder: {config.out}")


def print_json(value: dict[str, Any]) -> None:
    """One line on standard output. A run continues when its reader has ended."""
    try:
        print(json.dumps(value), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def size(recipe: Recipe, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the memory, disk and traffic that a run needs, with 1 to 16 workers."""
    from pipelines.tools.size import size_of

    found = size_of(read_config(recipe, overrides))
    if as_json:
        print(json.dumps(asdict(found)))
        return
    print(
        f"{found.num_source:,} source and {found.num_target:,} target images to train on, "
        f"{found.num_test:,} to test: {decimal(found.jpeg_bytes)} of images in their store, "
        f"{decimal(found.decoded_bytes)} of memory if kept decoded; {decimal(found.disk_bytes)} of "
        "disk for the run and the store."
    )
    table = Table("workers", "device memory", "sent a step", "sent an iteration",
                  title="Each worker on a device and a node of its own")  # fmt: skip
    for each in found.workers:
        sizes = each.device_bytes, each.bytes_per_step, each.bytes_per_iteration
        table.add_row(str(each.num_workers), *map(decimal, sizes))
    Console().print(table)
