"""What the commands share: arguments, recipes by name, lines on standard error."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from daal.config import Config
from daal.errors import ConfigError

errors = Console(stderr=True)
RECIPES = Path(__file__).parent / "recipes"

Recipe = Annotated[
    str,
    typer.Argument(help="A shipped recipe (paper, fast, modern, udap, ssg, demo) or a YAML file."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="e.g. target.root=DIR cluster.p=2e-3"),
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Also show what Ray says.")]


def read_config(recipe: str, overrides: list[str] | None) -> Config:
    """A shipped recipe by name, or a file by path."""
    from daal.load_config import load_config

    path = Path(recipe)
    if not path.suffix:
        path = RECIPES / f"{recipe}.yaml"
        if not os.path.exists(path):  # of Path, it fails for names too long for a disk
            names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
            raise ConfigError(
                f'there is no recipe "{recipe}"; shipped are {names}, or give a .yaml file.'
            )
    return load_config(path, overrides or [])


def show(colour: str, kind: str, text: str) -> None:
    """One line on standard error; the text is never read as markup, and can't steer a terminal."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    line = f"[{colour}]{kind}:[/{colour}] {escape(text)}"
    errors.print(line, highlight=False, soft_wrap=True, emoji=False)
