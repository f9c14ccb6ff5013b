"""The command `daal`: its verbs, and how errors become exit codes."""

import logging
import os
import sys
import warnings
from importlib.metadata import version
from typing import Annotated

import typer
from typer.exceptions import TyperException

from daal import DISTRIBUTION
from daal.errors import ConfigError, DaalError
from pipelines.commands import ablate, jobs, label, model, report, run, setup
from pipelines.show.console import show
from pipelines.workers.ray_environment import set_for_process

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Adapt a person re-identification model to unlabelled cameras. "
    "Exit codes: 2 configuration, 3 data, 4 checkpoint, 5 diverged, 6 cluster, 7 pseudo-labels, "
    "8 storage.",
)


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"daal {version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options of `daal` itself."""


for command in (
    run.demo,
    run.validate,
    run.size,
    run.ingest,
    run.adapt,
    run.pretrain,
    ablate.ablate,
    report.report,
    model.extract,
    model.evaluate,
    model.search,
    model.export,
    model.convert,
    label.label,
    jobs.submit,
    jobs.status,
    jobs.logs,
    jobs.stop,
    model.replay,
    setup.synth,
    setup.tracks,
    setup.doctor,
):
    app.command()(command)
config_app = typer.Typer(
    no_args_is_help=True, help="Show a recipe's settings, or the JSON schema of recipes."
)
config_app.command("show")(setup.config_show)
config_app.command("schema")(setup.config_schema)
app.add_typer(config_app, name="config")


def main() -> None:
    """Entry point of the script `daal`."""
    set_for_process()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # About damaged images and weights files, which this project's own messages name.
    warnings.filterwarnings("ignore", module=r"PIL\.|torch\.(serialization|_weights_only)")
    try:
        arguments = [with_home(argument) for argument in sys.argv[1:]]
        sys.exit(app(arguments, prog_name="daal", standalone_mode=False) or 0)
    except TyperException as error:
        show_usage_error(error)
        sys.exit(error.exit_code)
    except DaalError as error:
        # Each mistake in settings has a line; in other errors, a newline is part of a name.
        several = isinstance(error, ConfigError) or type(error) is DaalError
        for line in str(error).split("\n") if several else [str(error)]:
            show("red", "error", line)
        sys.exit(error.exit_code)
    except OSError as error:
        what = f"{error.filename or 'a file'}: {error.strerror or error}"
        show("red", "error", f"{what}; check the path, its disk and its permissions.")
        sys.exit(1)


def with_home(argument: str) -> str:
    """The argument with `~` expanded at its start, also in `--option=~/path`.

    A shell doesn't do this inside quotes and after `--option=`. The configuration does it for
    KEY=VALUE.
    """
    option, equals, value = argument.partition("=")
    if equals and option.startswith("-"):
        return f"{option}={os.path.expanduser(value)}"
    return os.path.expanduser(argument)


def show_usage_error(error: TyperException) -> None:
    """A wrong command, option or argument, as one line like all other errors."""
    message = error.format_message()
    if not message:
        return  # without arguments, the help has been printed
    ending = "" if message.endswith((".", "?", ")")) else "."
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "daal"
    show("red", "error", f'{message}{ending} See "{command} --help".')


if __name__ == "__main__":
    main()
