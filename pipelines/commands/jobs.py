"""The commands for runs as jobs of a Ray cluster: submit, status, logs, stop."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.commands.arguments import AsJson, Overrides, Recipe
from pipelines.show.console import errors
from pipelines.tools.shipped import read_config

if TYPE_CHECKING:
    from pipelines.tools.jobs import Job, Jobs

Address = Annotated[
    str,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, http://HOST:8265."
    ),
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Send the token unencrypted to another host (http://)."),
]
Follow = Annotated[
    bool,
    typer.Option("-f", "--follow", help="Follow the log until the run ends; exit with its code."),
]
Name = Annotated[str, typer.Argument(help="The run's name.")]
LOCAL_DASHBOARD = "http://127.0.0.1:8265"


def submit(
    recipe: Recipe,
    overrides: Overrides = None,
    address: Address = LOCAL_DASHBOARD,
    name: Annotated[
        str | None, typer.Option(help="The run's name (default: the last part of out=).")
    ] = None,
    ship_code: Annotated[
        bool, typer.Option("--ship-code", help="Also send daal's code, for an image without it.")
    ] = False,
    follow: Follow = False,
    insecure: Insecure = False,
) -> None:
    """Run `adapt` as a job of a Ray cluster. The same name again continues the run."""
    config = read_config(recipe, overrides, expand_home=False)  # its home is the cluster's
    jobs = connect(address, insecure)
    job = jobs.submit(name or config.run_name, config, ship_code)
    errors.print(
        f"submitted to {address} as {job.submission_id}; daal status {job.run} shows its status.",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    if follow:
        follow_job(jobs, job)


def status(
    name: Annotated[str | None, typer.Argument(help="The run's name (default: all runs).")] = None,
    address: Address = LOCAL_DASHBOARD,
    as_json: AsJson = False,
    insecure: Insecure = False,
) -> None:
    """List the runs on a cluster, or one run, with their status."""
    jobs = connect(address, insecure)
    found = jobs.all() if name is None else [jobs.get(name)]
    if as_json:
        print(json.dumps([asdict(job) for job in found]))
        return
    if not found:
        errors.print(f"no runs at {address}; daal submit starts one.", markup=False, soft_wrap=True)
        return
    table = Table("run", "job", "status", "exit code", "message")
    for job in found:
        code = "" if job.exit_code is None else str(job.exit_code)
        # A failed job's message is the end of its log, up to 20,000 characters.
        last = (job.message.splitlines() or [""])[-1]
        table.add_row(job.run, job.submission_id, job.status.value, code, escape(last))
    Console().print(table)


def logs(
    name: Name,
    address: Address = LOCAL_DASHBOARD,
    follow: Follow = False,
    insecure: Insecure = False,
) -> None:
    """Print a run's log."""
    jobs = connect(address, insecure)
    job = jobs.get(name)
    if follow:
        follow_job(jobs, job)
    print(jobs.logs(job), end="")


def stop(name: Name, address: Address = LOCAL_DASHBOARD, insecure: Insecure = False) -> None:
    """Stop a run. Submitting its name again continues it."""
    jobs = connect(address, insecure)
    job = jobs.get(name)
    if job.is_over:
        errors.print(f"{job.submission_id} is over already ({job.status.value}).")
        return
    jobs.stop(job)
    errors.print(f"{job.submission_id} is being stopped.")


def connect(address: str, insecure: bool) -> "Jobs":
    from pipelines.tools.jobs import Jobs  # imports Ray, which takes seconds

    return Jobs(address, insecure)


def follow_job(jobs: "Jobs", job: "Job") -> NoReturn:
    """Print a job's log until it ends, then exit with its code."""
    job = jobs.follow(job, lambda text: print(text, end="", flush=True))
    errors.print(f"{job.submission_id}: {job.status.value}")
    sys.exit(0 if job.status.value == "SUCCEEDED" else job.exit_code or 1)
