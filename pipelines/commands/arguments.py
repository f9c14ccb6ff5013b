"""Arguments and options that several commands have."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from daal.errors import ClusterError
from pipelines.tools.shipped import shipped_names

Recipe = Annotated[
    str,
    typer.Argument(help=f"A shipped recipe ({', '.join(shipped_names())}) or a YAML file."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings, e.g. target.root=DIR cluster.p=2e-3",
    ),
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Also show Ray's own messages.")]
Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", help="Show only warnings, errors and the final scores.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EventsAsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print each line of metrics.jsonl as it is written, then the summary."
    ),
]


@contextmanager
def ray_errors(remedy: str) -> Iterator[None]:
    """Turn errors of Ray itself, such as a lost worker, into a ClusterError with a remedy.

    A task's error that another try would raise again keeps its own words
    (`pipelines.workers.retries`).
    """
    from ray.exceptions import RayError

    try:
        yield
    except (RayError, ImportError) as error:
        from pipelines.workers.retries import final

        cause = getattr(error, "cause", error if isinstance(error.__cause__, RayError) else None)
        if isinstance(cause, Exception) and (known := final(cause)):
            raise known from error
        if not isinstance(error, RayError):
            raise
        reason = str(error).strip() or type(error).__name__
        raise ClusterError(f"Ray stopped the run ({reason.splitlines()[-1]}); {remedy}") from error
