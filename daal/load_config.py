"""Recipe file plus KEY=VALUE overrides -> one checked `Config`.

Layers are merged as plain dictionaries and validated once, so that a slip in a file and
one on the command line read the same: the key, what is wrong, the nearest key, the origin.
"""

import copy
import difflib
import os
import re
import reprlib
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from daal.config import VALUE_OF_RULE, Config, conditions_of, fields
from daal.errors import ConfigError
from daal.old_config import as_yaml, of_today, pop

Origins = dict[str, str]  # dotted key -> where its value came from

# Settings that may name a place on the machine that the run is on.
PATHS = ("out", "store", "source.root", "target.root", "network.weights", "tracking.mlflow")

MAX_RECIPE_BYTES = 100_000  # the YAML parser would take minutes for files that are no recipes
MAX_DEPTH = 10  # of sections in sections

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80


def load_config(
    recipe: Path | None, overrides: Iterable[str] = (), expand_home: bool = True
) -> Config:
    """Defaults, then `recipe` (YAML), then `overrides` ("cluster.eps=0.6").

    `~` in a path becomes the home folder of this machine. A configuration for another machine is
    loaded with `expand_home=False`, and expanded where it is used.

    Raises:
        ConfigError: one line per mistake.
    """
    values: dict[str, Any] = {}
    origins: Origins = {}
    if recipe is not None:
        _merge(values, read_yaml(recipe), origins, f"from {recipe.name}")
    apply_overrides(values, overrides, origins)
    if expand_home:
        expand_home_folders(values)
    return check_config(values, origins)


def apply_overrides(
    values: dict[str, Any], overrides: Iterable[str], origins: Origins | None = None
) -> dict[str, Any]:
    """Lay KEY=VALUE settings over nested values (changed in place, and returned).

    What `values` had is dropped where these settings leave it without an effect; so a rule for
    eps takes the place of another.
    """
    origins = {} if origins is None else origins
    layer: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.split(".")
        shown = _shortened(override)
        if not equals or not all(parts) or len(parts) > MAX_DEPTH:
            raise ConfigError(f'"{shown}" is not KEY=VALUE; write it like cluster.eps=0.6.')
        value = _parse_yaml(text, f'the value of "{shown}"')
        if _has_comment(text):
            raise ConfigError(
                f'"{shown}" has a #, with which YAML begins a comment; write the value in quotes '
                "of its own, like 'out=\"run #1\"', or leave the comment out."
            )
        _merge(layer, _nested(key, value), origins, f'from override "{shown}"')
    given = flat(layer)
    rule = {f"cluster.{name}" for name in ("eps_rule", *VALUE_OF_RULE.values())}
    if rule & given.keys():
        for key in rule:
            pop(values, key)
    _merge(values, layer, {}, "")
    for key, cause in _inert(values).items():
        if key not in given and cause.key in given:
            pop(values, key)
    return values


def check_config(
    values: dict[str, Any], origins: Origins | None = None, kept: bool = False
) -> Config:
    """Validate merged values; see `load_config`.

    `origins` has the keys that the user gave. Values that a run has `kept` in its folder are read
    also if release 0.1 took them and today's rules don't: settings without an effect have their
    defaults then.
    """
    values = of_today(copy.deepcopy(values), origins or {})
    if kept:
        for key in _inert(values):
            pop(values, key)
    try:
        config = Config.model_validate(values, context={"kept": kept})
    except ValidationError as error:
        lines = [_sentence(item, origins or {}) for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    if idle := _inert(values):
        raise ConfigError("\n".join(cause.sentence for cause in idle.values()))
    return config


def flat(values: Any, key: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    if not isinstance(values, dict):
        return {key: values}
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{key}.{name}" if key else str(name))
    return found


@dataclass(frozen=True)
class _Cause:
    """Why a setting has no effect: the key that decides on it, and the sentence for the user."""

    key: str
    sentence: str


def _inert(values: dict[str, Any]) -> dict[str, _Cause]:
    """Those settings that have no effect. One that is the default or null says nothing."""
    given, found = flat(values), {}
    for key, field in fields().items():
        value = given.get(key)
        if value is None or value == field.default:
            continue
        for name, sign, wanted in re.findall(r"([\w.]+)(!=|=|>)([^ ,]*)", conditions_of(field)):
            other = name if "." in name else f"{key.rpartition('.')[0]}.{name}"
            current = given.get(other, fields()[other].default)
            if sign == ">":
                holds = not isinstance(current, int | float) or current > float(wanted)
            else:
                holds = (as_yaml(current) in wanted.split("|")) == (sign == "=")
            if holds:
                continue
            remedy = {
                "=": f"set {other}={wanted.split('|')[0]}",
                "!=": f"choose another {other}",
                ">": f"raise {other} above {wanted}",
            }[sign]
            found[key] = _Cause(
                other,
                f"{key}={as_yaml(value)} has no effect with {other}={as_yaml(current)}; leave it "
                f"out, or {remedy}.",
            )
    return found


def differences(settings: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The keys in which configurations differ, each with its value in every one of them."""
    flats = [flat(values) for values in settings]
    keys = dict.fromkeys(key for values in flats for key in values)
    rows = {key: [values.get(key) for values in flats] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def read_yaml(path: Path, kind: str = "recipe", example: str = "seed: 1") -> dict[str, Any]:
    """What a YAML file of plain keys and values holds; messages call it a `kind`.

    Raises:
        ConfigError: it can't be read, or isn't such a file.
    """
    try:
        if not path.is_file():  # a folder; or a pipe, which would be waited for
            there = "isn't a file" if path.exists() else "doesn't exist"
            raise ConfigError(
                f"{kind} {path} can't be read: it {there}; give a YAML file or a shipped {kind}."
            )
        if (size := path.stat().st_size) > MAX_RECIPE_BYTES:
            raise ConfigError(
                f"{kind} {path} has {size:,} bytes, where a {kind} has a few thousand; check the "
                "path."
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{kind} {path} can't be read ({error.strerror}); check the path and its permissions."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{kind} {path} isn't UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from error
    content = _parse_yaml(text, f"{kind} {path}")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{kind} {path} must hold keys and values, like {example}, and not a "
            f"{type(content).__name__}."
        )
    return content


def did_you_mean(word: str, names: Iterable[str]) -> str | None:
    """A question with the nearest name, if one is near."""
    nearest = difflib.get_close_matches(word, sorted(names), n=1, cutoff=0.5)
    return f'did you mean "{nearest[0]}"?' if nearest else None


class _PlainLoader(yaml.SafeLoader):
    """YAML's plain data only: no references, which make gigabytes of a line, and no key that
    silently wins over another of its name."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            problem = f"the reference *{event.anchor} isn't followed"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {key.value!r} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _plain_number(loader: _PlainLoader, node: yaml.ScalarNode) -> int | float:
    """A number, unless YAML reads it in base 8 (010) or in base 60 (1:30)."""
    is_whole = node.tag.endswith(":int")
    value = loader.construct_yaml_int(node) if is_whole else loader.construct_yaml_float(node)
    if ":" in node.value or (is_whole and re.fullmatch(r"[-+]?0[0-7_]+", node.value)):
        problem = f"{node.value} means {value} there; write a plain number, or a text in quotes"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return value


for _kind in ("int", "float"):
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _plain_number)


def _parse_yaml(text: str, what: str) -> Any:
    try:
        return yaml.load(text, _PlainLoader)
    except RecursionError as error:
        raise ConfigError(f"{what} is nested too deeply; write it plainly.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: dates like 2020-13-45
        reason = str(error)
        if isinstance(error, yaml.MarkedYAMLError):
            mark = error.problem_mark
            where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            reason = f"{error.problem}{where}"
        reason = " ".join(reason.split())
        raise ConfigError(f"{what} is not valid YAML ({reason}); correct it there.") from error


def _has_comment(text: str) -> bool:
    """Whether YAML passes over the end of a (valid) text."""
    node = yaml.compose(text, _PlainLoader)
    return "#" in (text[node.end_mark.index :] if node else text)


def expand_home_folders(values: dict[str, Any]) -> None:
    """Replace `~` in paths (in place)."""
    for key in PATHS:
        given = flat(values).get(key)
        if isinstance(given, str) and given.startswith("~"):
            path = os.path.expanduser(given)
            if path == given:
                raise ConfigError(
                    f"{key}={given} begins with a home folder that isn't known here; write the "
                    f"whole path, or {key}=./{given} for a name that begins with ~."
                )
            _merge(values, _nested(key, path), {}, "")


def _nested(key: str, value: Any) -> Any:
    """A value as it stands in its sections."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


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
    # Its own; or of the section that it is in, or of a part of it.
    near = [k for k in origins if key.startswith(f"{k}.") or k.startswith(f"{key}.")]
    origin = origins.get(key) or (origins[near[0]] if near else None)
    where = f" [{origin}]" if origin else ""
    if item["type"] == "extra_forbidden":
        if key in fields():  # with its dots inside, from a file
            section, _, name = key.rpartition(".")
            return f'"{key}" must be written in its section, {section}: {{{name}: ...}}{where}'
        known = {k for leaf in fields() for k in accumulate(leaf.split("."), "{}.{}".format)}
        hint = did_you_mean(key, known) or 'see "daal config show".'
        return f'"{_shortened(key)}" is not a known key; {hint}{where}'
    if item["type"] == "value_error":  # of our own checks, which name their keys
        return f"{str(item['msg']).removeprefix('Value error, ')}."
    message = re.sub(r"^\w+ should", "should", item["msg"])  # "Input should be less than 1"
    if item["type"] in ("model_type", "dict_type"):
        message = f"should be a section of keys and values, {key}: {{...}}"
    elif item["type"] == "invalid_key":
        return f'"{key}" should be a name; see "daal config show".{where}'
    return f"{key}={_shown(item['input'])} {message}{where}"


def _shown(value: Any) -> str:
    try:
        return _short.repr(value)
    except ValueError:  # Python doesn't write integers of many thousand digits
        return "(a huge number)"


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
