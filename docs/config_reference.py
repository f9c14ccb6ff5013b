"""Sphinx extension: every key of a recipe, written from the pydantic models at build time."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sphinx.application import Sphinx

from daal import config
from daal.config import Config
from daal.load_config import load_config
from pipelines.tools.shipped import RECIPES

MARK = "<!-- every key -->"
TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def reference() -> str:
    """Markdown: a heading for each section, a `confval` for each key."""
    recipes = {path.stem: load_config(path) for path in sorted(RECIPES.glob("*.yaml"))}
    return "\n".join(_section(Config, "", "", Config(), recipes))


def _section(
    model: type[BaseModel], name: str, why: str, defaults: Any, recipes: dict[str, Config]
) -> Iterator[str]:
    yield f"\n## {name or 'The run'}\n"
    yield "\n\n".join(text for text in (_prose(model.__doc__ or ""), _prose(why)) if text)
    inner = []
    for key, field in model.model_fields.items():
        full = f"{name}.{key}" if name else key
        default = getattr(defaults, key)
        if isinstance(default, BaseModel):
            inner.append((type(default), full, field.description or "", default))
            continue
        yield f"\n```{{confval}} {full}"
        yield f":type: {allowed(field)}"
        yield f":default: `{_value(default)}`\n"
        yield _prose(field.description or "")
        if needs := config.conditions_of(field):
            yield f"\nHas an effect only with {', '.join(f'`{n}`' for n in needs.split(', '))}."
        others = {n: _at(recipe, full) for n, recipe in recipes.items()}
        others = {n: value for n, value in others.items() if value != default}
        if others:
            listed = ", ".join(f"{n} `{_value(value)}`" for n, value in others.items())
            yield f"\nIn recipes: {listed}."
        yield "```"
    for section in inner:
        yield from _section(*section, recipes)


def allowed(field: FieldInfo) -> str:
    """The values that a key takes, in words."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below",
             "min_length": "of a length of at least"}  # fmt: skip
    limits = [
        f"{word} {_number(getattr(limit, name))}"
        for name, word in words.items()
        for limit in field.metadata
        if hasattr(limit, name)
    ]
    return ", ".join([_kind(field.annotation), *limits])


def _kind(annotation: Any) -> str:
    if annotation in TYPES:
        return TYPES[annotation]
    if get_origin(annotation) is Literal:
        return _or([f"`{_value(value)}`" for value in get_args(annotation)])
    if get_origin(annotation) is list:
        (inner,) = get_args(annotation)
        return f"list of {_kind(inner)}{'s' if inner in TYPES else ''}"
    if get_origin(annotation) in (Union, UnionType):
        return _or([_kind(part) for part in get_args(annotation)])
    if annotation in (None, NoneType):
        return "`null`"
    raise TypeError(f"docs/config_reference.py has no words for {annotation}")


def _or(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _number(limit: float) -> str:
    power = isinstance(limit, int) and limit > 2**20 and limit & (limit - 1) == 0
    return f"2^{int(limit).bit_length() - 1}" if power else f"{limit:g}"


def _value(value: Any) -> str:
    """As it is written in YAML."""
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value)


def _at(recipe: Config, full: str) -> Any:
    found: Any = recipe
    for part in full.split("."):
        found = getattr(found, part)
    return found


def _prose(text: str) -> str:
    """One paragraph, with names like `images_per_id` and `use_gpu=auto` as code."""
    text = " ".join(text.split()).replace("<", "\\<").replace("*", "\\*")
    return re.sub(
        r"(?<![\w./`=-])[a-z0-9]+(?:[._][a-z0-9]+)*[._][a-z][a-z0-9_]*(?:=\w+)?(?![\w/])",
        r"`\g<0>`",
        text,
    )


def _fill(app: Sphinx, name: str, source: list[str]) -> None:
    if MARK in source[0]:
        app.env.note_dependency(str(Path(config.__file__)))
        source[0] = source[0].replace(MARK, reference())


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}
