"""What the commands share: arguments, recipes by name, lines and errors on standard error."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from daal.config import Config
from daal.errors import ClusterError, ConfigError

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
Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", help="Only warnings, errors and the scores at the end.")
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Progress as lines of JSON, those of metrics.jsonl; the last is the summary."
    ),
]


def read_config(recipe: str, overrides: list[str] | None) -> Config:
    """A shipped recipe by name, or a file by path."""
    from daal.load_config import load_config

    path = Path(recipe)
    if not path.suffix:
        path = RECIPES / f"{recipe}.yaml"
        if not os.path.exists(path):  # of Path, it fails for names too long for a disk
            raise unknown("recipe", recipe, RECIPES)
    return load_config(path, overrides or [])


def unknown(kind: str, name: str, folder: Path) -> ConfigError:
    """There is no recipe or suite of this name: which there are, and the nearest of them."""
    from daal.load_config import did_you_mean

    names = sorted(file.stem for file in folder.glob("*.yaml"))
    hint = did_you_mean(name, names)
    return ConfigError(
        f'there is no {kind} "{name}"; {f"{hint} Shipped" if hint else "shipped"} are '
        f"{', '.join(names)}, or give a .yaml file."
    )


def show(colour: str, kind: str, text: str) -> None:
    """One line on standard error; the text is never read as markup, and can't steer a terminal."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    line = f"[{colour}]{kind}:[/{colour}] {escape(text)}"
    errors.print(line, highlight=False, soft_wrap=True, emoji=False)


@contextmanager
def ray_errors(remedy: str) -> Iterator[None]:
    """Turn an error of Ray's own, such as a lost worker, into one line with its remedy."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        reason = str(error).strip() or type(error).__name__
        raise ClusterError(f"Ray stopped the run ({reason.splitlines()[-1]}); {remedy}") from error
