"""One line of `daal doctor`."""

from dataclasses import dataclass
from typing import Literal

from daal.errors import DaalError


@dataclass(frozen=True)
class Check:
    """exit_code: what a run would end with because of this; 0: a run can start all the same."""

    name: str
    status: Literal["ok", "warning", "missing"]
    found: str
    remedy: str = ""
    exit_code: int = 0


def ok(name: str, found: str) -> Check:
    return Check(name, "ok", found)


def warning(name: str, found: str, remedy: str) -> Check:
    return Check(name, "warning", found, remedy)


def missing(name: str, found: str, remedy: str, error: type[DaalError] | None = None) -> Check:
    """error: what a run would end with; None: a run works without."""
    return Check(name, "missing", found, remedy, error.exit_code if error else 0)
