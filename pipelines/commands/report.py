"""The command `report`, and the page that a run leaves at its end."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daal.errors import first_line
from pipelines.show.console import errors, show

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipelines.report.page import Report
    from pipelines.run.folder import RunFolder

REPORT = "report.html"  # in the run folder


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="A run's folder or URI. Several runs are compared."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write (RUN/report.html; for several runs comparison.html)."),
    ] = None,
) -> None:
    """Write an HTML page that says how good a run's model is, or that compares several runs."""
    from daal.whole_file import check_file_to_write, write_whole
    from pipelines.report import page as pages
    from pipelines.run.folder import RunFolder

    folders = [RunFolder(uri, create=False) for uri in runs]
    if len(folders) > 1:
        out = out or Path("comparison.html")
    if out is not None:
        check_file_to_write(out)
    with errors.status("making the page"):
        made = pages.report(folders[0]) if len(folders) == 1 else pages.comparison(folders)
    for failure in made.failures:
        show("yellow", "note", f"not in the page: {failure}")
    if out is None:
        folders[0].write(REPORT, made.html.encode())
        where = f"{runs[0].rstrip('/')}/{REPORT}"
    else:
        write_whole(out, made.html.encode())
        where = str(out)
    errors.print(f"{where} ({len(made.html) / 1e6:.1f} MB)", markup=False, soft_wrap=True)


def leave_report(run: "RunFolder", note: "Callable[[str], None]") -> None:
    """Write the page into a finished run's folder. If it fails, a note says why."""
    try:
        made = _page_in_task(run)
        run.write(REPORT, made.html.encode())
        for failure in made.failures:
            note(f"not in {REPORT}: {failure}")
    except Exception as error:  # the run itself is finished
        note(f"no report was written ({first_line(error)}); daal report {run.uri} tries again.")


def _page_in_task(run: "RunFolder") -> "Report":
    """The page, made in a process whose memory is not the driver's, on this node: the folder may be
    on its disk."""
    import ray

    from pipelines.report.page import report as page_of

    if not ray.is_initialized():
        return page_of(run)
    from cluster.ray_run import result_of

    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    task = ray.remote(num_cpus=0, label_selector=here)(page_of).options(name="report")
    made: Report = result_of(task.remote(run))
    return made
