"""Finds recipes and suites: shipped ones by name, others by path."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from daal.config import Config
from daal.errors import ConfigError
from daal.load_config import did_you_mean, load_config

RECIPES = Path(__file__).parents[1] / "recipes"
SUITES = Path(__file__).parents[1] / "suites"


def shipped(kind: Literal["recipe", "suite"], name: str) -> Path:
    """The file of that name; one with a suffix is a path. Raises ConfigError if there is none."""
    path = Path(name)
    if path.suffix:
        return path
    folder = {"recipe": RECIPES, "suite": SUITES}[kind]
    path = folder / f"{name}.yaml"
    if not os.path.exists(path):  # Path.exists fails for names that are too long
        names = shipped_names(folder)
        hint = did_you_mean(name, names)
        raise ConfigError(
            f'there is no {kind} "{name}"; {f"{hint} Shipped" if hint else "shipped"} are '
            f"{', '.join(names)}, or give a .yaml file."
        )
    return path


def shipped_names(folder: Path = RECIPES) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.yaml"))


def read_config(
    recipe: str, overrides: Iterable[str] | None = None, expand_home: bool = True
) -> Config:
    """A recipe with KEY=VALUE settings over it. Raises ConfigError, a line per mistake."""
    return load_config(shipped("recipe", recipe), overrides or [], expand_home)
