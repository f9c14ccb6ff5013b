"""Sphinx extension: every command and exit code, written from the program at build time."""

import subprocess
import sys

import typer
from sphinx.application import Sphinx

from daal import errors
from pipelines import cli

COMMANDS = "<!-- every command -->"
EXIT_CODES = "<!-- every exit code -->"
OTHERS = {
    0: "Done.",
    1: "Anything else: a failed run of a suite, a file that can't be read.",
    130: "Interrupted (Ctrl-C).",
    143: "Terminated (SIGTERM).",
}


def commands() -> str:
    """Markdown: what there is, then each command by Typer's own generator."""
    generator = [sys.executable, "-m", "typer", "pipelines.cli", "utils", "docs", "--name", "daal"]
    text = subprocess.run(generator, check=True, capture_output=True, text=True).stdout
    _, heading, each = text.partition("\n## ")
    if not heading:
        raise RuntimeError("Typer's generator no longer writes what this script reads")
    group = typer.main.get_command(cli.app)
    rows = [
        f"| [`daal {name}`](#daal-{name}) | {(command.help or '').splitlines()[0]} |"
        for name, command in group.commands.items()
    ]
    # Metavars that already say "any number" get brackets of Typer's around them.
    each = each.replace("[[KEY=VALUE]...]...", "[KEY=VALUE]...").replace("### ", "## ")
    return "\n".join(["| command | what it does |", "|---|---|", *rows, f"{heading}{each}"])


def exit_codes() -> str:
    """A Markdown table of what the command can end with."""
    kinds = {kind.exit_code: kind.__doc__ or "" for kind in errors.DaalError.__subclasses__()}
    rows = [f"| {code} | {text} |" for code, text in sorted((kinds | OTHERS).items())]
    return "\n".join(["| exit code | what happened |", "|---|---|", *rows])


def _fill(app: Sphinx, name: str, source: list[str]) -> None:
    for mark, write in ((COMMANDS, commands), (EXIT_CODES, exit_codes)):
        if mark in source[0]:
            source[0] = source[0].replace(mark, write())


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}
