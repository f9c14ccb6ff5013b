"""Recipe file plus KEY=VALUE overrides -> one checked `Config`.

Layers are merged as plain dictionaries and validated once, so that a slip in a file and
one on the command line read the same: the key, what is wrong, the nearest key, the origin.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from daal.config import Config
from daal.errors import ConfigError

Origins = dict[str, str]  # dotted key -> where its value came from


def load_config(recipe: Path | None, overrides: Iterable[str] = ()) -> Config:
    """Defaults, then `recipe` (YAML), then `overrides` ("cluster.eps=0.6").

    Raises:
        ConfigError: one line per mistake.
    """
    values: dict[str, Any] = {}
    origins: Origins = {}
    if recipe is not None:
        _merge(values, _read_yaml(recipe), origins, f"from {recipe.name}")
    return check_config(apply_overrides(values, overrides, origins), origins)


def apply_overrides(
    values: dict[str, Any], overrides: Iterable[str], origins: Origins | None = None
) -> dict[str, Any]:
    """Lay KEY=VALUE settings over nested values (changed in place, and returned)."""
    origins = {} if origins is None else origins
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f'"{override}" is not KEY=VALUE, e.g. cluster.eps=0.6.')
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f'the value of "{override}" is not valid YAML: {error}') from error
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(values, nested, origins, f'from override "{override}"')
    return values


def check_config(values: dict[str, Any], origins: Origins | None = None) -> Config:
    """Validate merged values; see `load_config`."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [_sentence(item, origins or {}) for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every dotted key that a recipe may set."""
    keys = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += known_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"recipe {path} can't be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = str(error).replace("\n", " ")
        raise ConfigError(f"recipe {path} is not valid YAML: {where}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"recipe {path} must hold keys and values, not a {type(content).__name__}."
        )
    return content


def _merge(
    into: dict[str, Any], new: dict[str, Any], origins: Origins, origin: str, at: str = ""
) -> None:
    for name, value in new.items():
        key = f"{at}{name}"
        if isinstance(value, dict):
            if not isinstance(into.get(name), dict):
                into[name] = {}
            _merge(into[name], value, origins, origin, f"{key}.")
        else:
            into[name] = value
            origins[key] = origin


def _sentence(item: Any, origins: Origins) -> str:
    key = ".".join(
        str(part) for part in item["loc"] if not str(part).startswith(("literal[", "bool"))
    )
    origin = next((o for k, o in origins.items() if k == key or k.startswith(f"{key}.")), None)
    where = f" [{origin}]" if origin else ""
    if item["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.5)
        hint = f'; did you mean "{nearest[0]}"?' if nearest else '; see "daal config show".'
        return f'"{key}" is not a known key{hint}{where}'
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "value_error":  # of our own checks, which name their keys
        return message
    return f"{key}={item['input']!r}: {message[:1].lower()}{message[1:]}{where}"
