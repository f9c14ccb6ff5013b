"""The command `daal`: read the arguments, call one function, turn errors into exit codes."""

import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from daal.config import Config
from daal.errors import ClusterError, ConfigError, DaalError
from daal.whole_file import check_file_to_write
from pipelines import job_commands, model_commands, report_commands, setup_commands
from pipelines.arguments import (
    AsJson,
    Overrides,
    Quiet,
    Recipe,
    Verbose,
    errors,
    read_config,
    show,
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Adapt a person re-identification model to unlabelled cameras. "
    "Exit codes: 2 configuration, 3 data, 4 checkpoint, 5 diverged, 6 cluster, 7 pseudo-labels, "
    "8 storage.",
)
config_app = typer.Typer(no_args_is_help=True, help="Look at configurations.")
app.add_typer(config_app, name="config")
for command in (job_commands.submit, job_commands.status, job_commands.logs, job_commands.stop):
    app.command()(command)
app.command()(model_commands.export)
app.command()(model_commands.search)
app.command()(report_commands.report)
app.command()(setup_commands.doctor)
config_app.command("show")(setup_commands.config_show)
config_app.command("schema")(setup_commands.config_schema)


@app.command()
def adapt(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, start nothing.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Pretrain on the source, then Algorithm 1; the same command continues a stopped run."""
    run_adaptation(read_config(recipe, overrides), dry_run, verbose, quiet=quiet, as_json=as_json)


@app.command()
def pretrain(
    recipe: Recipe,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Train on the source only and score the direct transfer; `adapt` goes on from there."""
    run_adaptation(
        read_config(recipe, overrides),
        verbose=verbose, pretrain_only=True, quiet=quiet, as_json=as_json,
    )  # fmt: skip


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder; the drawn images go beside it.")] = Path(
        "runs/demo"
    ),
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Draw two domains of pedestrians and adapt from one to the other, on this machine."""
    from daal.synthetic import draw_domains

    images = out.with_name(f"{out.name}-images")
    settings = [f"source.root={images}/source", f"target.root={images}/target", f"out={out}"]
    config = read_config("demo", [*settings, *(overrides or [])])
    draw_domains(images, seed=config.seed)
    run_adaptation(config, verbose=verbose, quiet=quiet, as_json=as_json)


@app.command()
def ablate(
    suite: Annotated[
        str, typer.Argument(help="A shipped suite (table4, fig5, ...), or a YAML file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="For every row, on top of its own settings."),
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
    from pipelines.ablate import configurations, read_suite, run_suite
    from pipelines.session import ray_session
    from pipelines.suite_table import as_json, markdown, measured_on, plot
    from pipelines.validate import validate as find

    table = read_suite(suite)
    folder = out or Path("runs") / Path(suite).stem
    overrides = overrides or []
    folders = dict(item.partition("=")[::2] for item in data or [])
    named = any(row.target for row in table.rows)
    images = folder.with_name(f"{folder.name}-images")
    drawn = not named and not read_config(recipe or table.recipe, overrides).target.root
    if drawn:
        overrides += [f"source.root={images}/source", f"target.root={images}/target"]
    configs = configurations(
        table.model_copy(update={"recipe": recipe or table.recipe}),
        *(lambda name: read_config(name, []), overrides, seeds or table.seeds),
        *(str(folder), folders),
    )
    if dry_run:
        for (name, seed), config in configs.items():
            print(f"{name}, seed {seed}: {config.out}")
        return
    if drawn:
        from daal.synthetic import draw_domains

        draw_domains(images, seed=0)
    some = next(iter(configs.values()))
    kinds = {(config.source.root, config.target.root): config for config in configs.values()}
    measured = " | ".join(measured_on(config, find(config).counts) for config in kinds.values())
    remedy = "the same command goes on with what is left, and -v shows what Ray says."
    with ray_errors(remedy), ray_session(some.ray, verbose):
        results = run_suite(table, configs, str(folder), errors.print)
    text = markdown(table, results, measured)
    (folder / "table.md").write_text(text, encoding="utf-8")
    (folder / "table.json").write_text(as_json(table, results, measured), encoding="utf-8")
    (folder / "table.svg").write_bytes(plot(table, results, measured))
    print(text)
    errors.print(f"{folder}/table.md, table.json and table.svg")


@app.command()
def size(
    recipe: Recipe,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a run would need, on this many workers and on others: memory, disk, traffic, hours."""
    from pipelines.size import size_of

    found = size_of(read_config(recipe, overrides))
    if as_json:
        print(json.dumps(found.as_dict()))
        return
    probe, gb = found.probe, 1e9
    print(
        f"{found.num_source} source and {found.num_target} target images to train on, "
        f"{found.num_test} to test: {found.jpeg_bytes / gb:.2f} GB of JPEG in the object store, "
        f"{found.decoded_bytes / gb:.2f} GB more if kept decoded; {found.disk_bytes / gb:.2f} GB "
        f"of disk for the run.\nProbe on {probe.device}: {probe.train_images_per_s:.1f} images/s "
        f"in training, {probe.extract_images_per_s:.1f} in extraction, "
        f"{probe.decode_images_per_s:.0f} decoded by a CPU."
    )
    table = Table(
        *("workers", "device memory", "CPUs to decode", "sent a step", "moved an iteration"),
        "hours", title="Each worker on a device like the probe's and a node of its own",
    )  # fmt: skip
    for need in found.needs:
        table.add_row(
            str(need.num_workers),
            f"{need.device_bytes / gb:.1f} GB",
            f"{need.decode_cpus:.1f}",
            f"{need.bytes_per_step / gb:.2f} GB",
            f"{need.bytes_per_iteration / gb:.2f} GB",
            f"{need.hours:.1f}",
        )
    Console().print(table)


@app.command()
def validate(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check configuration, data and weights in seconds, before any worker starts."""
    run_adaptation(read_config(recipe, overrides), dry_run=True)


@app.command()
def extract(
    model: Annotated[
        str, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="A run's folder, or a checkpoint's.")
    ],
    images: Annotated[str, typer.Argument(help="A data set's folder.")],
    out: Annotated[Path, typer.Option(help="The features file to write.")] = Path(
        "features.parquet"
    ),
    layout: Annotated[
        str, typer.Option(help="market1501, dukemtmc, msmt17 or folder.")
    ] = "market1501",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. ray.num_workers=1")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Features of every image of a folder, to a Parquet file."""
    from pipelines.inference import extract_folder
    from pipelines.trained_run import checkpoint_of

    check_file_to_write(out)
    with checkpoint_of(model) as (folder, _):
        table, quarantine = extract_folder(folder, images, layout, overrides or [], verbose)
    pq.write_table(table, out, compression="zstd")
    for row in quarantine.to_pylist():
        show("yellow", "left out", f"{row['path']}: {row['reason']}")
    errors.print(f"{len(table)} features written to {out}")


@app.command()
def label(
    features: Annotated[
        Path, typer.Argument(help='A .parquet file with a list column "feature", or .npy (N, D).')
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="e.g. cluster.k1=30 cluster.eps_rule=p"),
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("pseudo_labels.parquet"),
    split: Annotated[
        str | None, typer.Option(help="Only rows of this split, e.g. train (default: all rows).")
    ] = None,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="As Ray tasks: RAY_ADDRESS's cluster, or a local Ray.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    verbose: Verbose = False,
) -> None:
    """Pseudo-labels of any features, by themselves: k-reciprocal distance, eps, DBSCAN.

    eps is found by cluster.eps_rule=q here, which holds for sets of any size. Giving cluster.p,
    cluster.q or cluster.eps implies the rule that uses it: p, q or fixed; more than one of them
    needs cluster.eps_rule.
    """
    from daal.load_config import load_config
    from pipelines import label as labelling
    from pipelines.feature_files import read_features

    config = load_config(None, labelling.with_eps_rule(overrides or []))
    check_file_to_write(out)
    given = read_features(features, split)
    with (
        ray_errors("-v shows what Ray says."),
        errors.status(f"{len(given.features_NC)} features") as status,
    ):
        found = labelling.label(
            given,
            config.cluster,
            config.ray if on_ray else None,
            verbose,
            lambda stage, done, tasks: status.update(f"{stage}: {done} of {tasks} tasks"),
        )
    figures = labelling.as_dict(given, found)  # first, so that no failure leaves a file behind
    labelling.write_whole(labelling.labels_table(given, found), out)
    for note in found.notes:
        show("yellow", "note", note)
    if as_json:
        print(json.dumps(figures, indent=1))
    else:
        Console().print(labels_table_of(figures))
    errors.print(f"{len(found.labels)} pseudo-labels written to {out}")


def labels_table_of(figures: dict[str, Any]) -> Table:
    """Figures of pseudo-labels; the last four only where identities are known."""
    table = Table("", "", title="Pseudo-labels", show_header=False)
    for name in ("num_images", "num_clusters", "outlier_share", "largest_cluster", "eps", "p",
                 "ari", "nmi", "pair_precision", "pair_recall"):  # fmt: skip
        value = figures[name]
        if value is not None:
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table


@app.command()
def evaluate(
    features: Annotated[Path, typer.Argument(help="A features file with query and gallery rows.")],
) -> None:
    """Market-protocol scores of a features file, as JSON."""
    from pipelines.inference import evaluate_file

    print(json.dumps(evaluate_file(features).as_dict(), indent=1))


@app.command()
def replay(
    step: Annotated[Path, typer.Argument(help="What a diverged training has kept of its step.")],
) -> None:
    """Compute a training step again that came out not finite, and say where it did so first."""
    from pipelines.replay import replay as compute

    found = compute(step)
    # JSON has no NaN and no infinity; they are printed as text.
    loss = {name: x if math.isfinite(x) else str(x) for name, x in found.terms.items()}
    print(json.dumps({"diverged": found.diverged, "first": found.module, "loss": loss}))


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder for the two drawn domains.")],
    seed: Annotated[int, typer.Option(help="Another seed draws other people.")] = 0,
) -> None:
    """Draw a source and a target domain of pedestrians, in Market-1501's layout."""
    from daal.synthetic import draw_domains

    draw_domains(out, seed=seed)
    errors.print(f"drawn: {out}/source and {out}/target")


def run_adaptation(
    config: Config,
    dry_run: bool = False,
    verbose: bool = False,
    pretrain_only: bool = False,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Validate, start or join Ray, run, print the table (or JSON)."""
    from pipelines.tracking import check_tracking, tracked
    from pipelines.validate import validate as find

    if as_json and verbose:
        raise ConfigError("--json can't go with -v, which lets Ray write to the output; use one.")
    check_tracking(config.tracking)
    findings = find(config)
    for warning in findings.warnings:
        show("yellow", "warning", warning)
    if dry_run and as_json:
        print(json.dumps(asdict(findings)))
        return
    if dry_run:
        table = Table(
            *("", "train", "query", "gallery", "decoded to look at"),
            title="Images found; nothing was started",
        )
        for domain, counts in findings.counts.items():
            table.add_row(domain, *map(str, counts.values()), str(findings.num_sampled[domain]))
        Console().print(table)
        return

    from pipelines.adapt import Adaptation
    from pipelines.gauges import Gauges
    from pipelines.progress import Progress, scores_table
    from pipelines.report_commands import REPORT
    from pipelines.run_folder import RunFolder
    from pipelines.session import ray_session
    from pipelines.submit import default_name

    run, name = RunFolder(config.out), default_name(config)
    listeners: list[Callable[[dict[str, Any]], None]] = [print_json] if as_json else []

    def record(event: dict[str, Any]) -> None:
        run.append("metrics.jsonl", event)
        for listen in listeners:
            listen(event)

    progress = Progress(record, errors, quiet or as_json, live=not verbose)
    remedy = "the same command continues it, and -v shows what Ray says."
    try:
        with run.claimed(), ray_errors(remedy):
            run.keep_config(config)
            num_stages = len(run.journal())
            with (
                ray_session(config.ray, verbose) as resources,
                tracked(config, run, name, progress.say, progress.note) as track,
            ):
                listeners += [Gauges(name).show, track]
                progress.say(str(resources))
                adaptation = Adaptation(config, run, resources, progress)
                if pretrain_only:
                    adaptation.pretrain_only()
                else:
                    adaptation.adapt()
    except (KeyboardInterrupt, SystemExit):
        errors.print("stopped; the same command continues this run.")
        raise
    if as_json:
        print_json(adaptation.summary())
    else:
        scored = [(row["name"], row) for row in adaptation.rows if "map" in row]
        Console().print(scores_table(scored))
    # A run that was finished before has its report, unless somebody has deleted it.
    is_new = len(run.journal()) > num_stages or not run.exists(REPORT)
    if config.report and is_new and not pretrain_only:
        report_commands.leave_report(run, progress.note)
    if not as_json:
        progress.tell(f"run folder: {config.out}")


def print_json(value: dict[str, Any]) -> None:
    """One line on standard output. A reader that is gone doesn't end the run."""
    try:
        print(json.dumps(value), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def ray_errors(remedy: str) -> Iterator[None]:
    """Turn an error of Ray's own, such as a lost worker, into one line with its remedy."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        reason = str(error).strip() or type(error).__name__
        raise ClusterError(f"Ray stopped the run ({reason.splitlines()[-1]}); {remedy}") from error


def main() -> None:
    """Entry point of the script `daal`."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Of damaged images and weights files; we say ourselves which they are and why.
    warnings.filterwarnings("ignore", module=r"PIL\.|torch\.(serialization|_weights_only)")
    try:
        sys.exit(app(prog_name="daal", standalone_mode=False))
    except TyperException as error:
        show_usage_error(error)
        sys.exit(error.exit_code)
    except DaalError as error:
        # Mistakes in settings have a line each; in other errors, a newline is part of a name.
        several = isinstance(error, ConfigError) or type(error) is DaalError
        for line in str(error).split("\n") if several else [str(error)]:
            show("red", "error", line)
        sys.exit(error.exit_code)
    except OSError as error:
        what = f"{error.filename or 'a file'}: {error.strerror or error}"
        show("red", "error", f"{what}; check the path, its disk and its permissions.")
        sys.exit(1)


def show_usage_error(error: TyperException) -> None:
    """A wrong command, option or argument, as one line like all other errors."""
    message = error.format_message()
    if not message:
        return  # nothing was given, and the help has been printed
    ending = "" if message.endswith((".", "?", ")")) else "."
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "daal"
    show("red", "error", f'{message}{ending} See "{command} --help".')


if __name__ == "__main__":
    main()
