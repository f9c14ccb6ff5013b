"""Bugs, each a change of a function's source text while a test runs."""

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any


@contextmanager
def planted(owner: Any, name: str, old: str, new: str) -> Iterator[None]:
    """`owner.name`, a function of a module or a method of a class, with `new` in place of `old`.

    It changes for all who have imported it. The text must be there once: a bug that no longer fits
    the code is to be planted again.
    """
    function = _inner(getattr(owner, name))
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{old!r} is {source.count(old)} times in {name}"
    names: dict[str, Any] = {}
    exec(source.replace(old, new), function.__globals__, names)
    code = function.__code__
    function.__code__ = _inner(names[name]).__code__
    try:
        yield
    finally:
        function.__code__ = code


def _inner(function: Any) -> FunctionType:
    """A function without its decorators."""
    return inspect.unwrap(getattr(function, "__func__", function))
