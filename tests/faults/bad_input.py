"""What the tests of bad input share: a case, how it is run, what every answer must look like."""

import contextlib
import io
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image
from programs import daal

REMEDIES = (
    "add|check|choose|convert|copy|correct|did you mean|extract|get|give|go back|lower|make|must|"
    "name|needs|raise|remove|rename|repaired|repair|save|see|set|should|take|unpack|use|write"
)


@dataclass(frozen=True)
class Case:
    """One bad input. `make` leaves it in the current folder and gives daal's arguments.

    What must be said of it is in docs/bad_input.md.
    """

    subject: str
    name: str
    make: Callable[[], list[str]]
    code: int


def case(subject: str, name: str, make: Callable[[], object], command: str, code: int) -> Case:
    """A case whose arguments are those of a command line."""

    def arguments() -> list[str]:
        make()
        return shlex.split(command)

    return Case(subject, name, arguments, code)


@dataclass(frozen=True)
class Outcome:
    """What the user got."""

    code: int
    out: str
    err: str  # with DIR for the folder that the case ran in
    left: set[Path]  # files that the command made or removed


def run(case: Case, folder: Path) -> Outcome:
    """The case through daal's entry point, in this process, in the empty `folder`."""
    with contextlib.chdir(folder), patch.dict(os.environ, {"COLUMNS": "200"}):
        arguments = case.make()
        before = set(folder.rglob("*"))
        code, out, err = daal(*arguments)
        left = before ^ set(folder.rglob("*"))
    return Outcome(code, out, err.replace(str(folder), "DIR"), left)


def check(case: Case, outcome: Outcome) -> None:
    """One error or few, or warnings, each with a remedy; and nothing else."""
    lines = outcome.err.splitlines()
    assert outcome.code == case.code, f"exit code {outcome.code}: {outcome.err}"
    assert not outcome.left, f"files were made or removed: {outcome.left}"
    assert (1 if case.code else 0) <= len(lines) <= 4, f"{len(lines)} lines: {outcome.err}"
    kind = "error: " if case.code else "warning: "
    for line in lines:
        assert line.startswith(kind), f"no {kind}{line}"
        assert line.isprintable(), f"not printable: {line!a}"
        assert len(line) < 700, f"too long: {line}"
        assert re.search(rf"\b({REMEDIES})\b", line, re.IGNORECASE), f"no remedy: {line}"
    if case.code:
        assert "nothing was started" not in outcome.out, "it continued after an error"


# Small worlds that are in order, for cases to spoil


def picture(number: int = 0, height: int = 32, width: int = 16) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


PICTURE = encoded(picture())

BOXES = {
    "bounding_box_train": [f"{pid:04}_c{cam}s1_{pid:06}_00.jpg" for pid in (1, 2, 3, 4)
                           for cam in (1, 2, 3)],
    "query": ["0007_c1s1_000007_00.jpg", "0008_c2s1_000008_00.jpg"],
    "bounding_box_test": ["0007_c2s1_000007_01.jpg", "0008_c1s1_000008_01.jpg",
                          "0000_c1s1_000000_00.jpg", "-1_c3s1_000009_00.jpg"],
}  # fmt: skip
VICTIM = "target/bounding_box_train/0002_c1s1_000002_00.jpg"


def write(name: str, data: bytes | str = PICTURE) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return name


def market(root: str) -> None:
    for folder, names in BOXES.items():
        for name in names:
            write(f"{root}/{folder}/{name}")


def both_sets() -> None:
    market("source")
    market("target")


def nothing() -> None:
    """Where a case needs no file, or no other."""


# The two sets are in order, unless the case has spoiled them.
VALIDATE = "validate demo source.root=source target.root=target"


# The list of all cases, as Markdown


def as_markdown(found: list[tuple[Case, Outcome]]) -> str:
    refused = sum(outcome.code != 0 for _, outcome in found)
    warned = sum(outcome.code == 0 and bool(outcome.err) for _, outcome in found)
    lines = [
        "# Bad input, and what daal says",
        "",
        f"{len(found)} cases: {refused} refused, {warned} let through with a warning, "
        f"{len(found) - refused - warned} read as they should be.",
        "",
        "Written by the tests, from what the commands printed:",
        "",
        "    DAAL_WRITE_DOCS=1 .venv/bin/python -m pytest tests/faults/test_bad_input.py",
        "",
        "Exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint or weights, 7 pseudo-labels.",
        "DIR is the folder that the command ran in.",
    ]
    subject = ""
    for case, outcome in found:
        if case.subject != subject:
            subject = case.subject
            lines += ["", f"## {subject}", "", "| case | exit | message |", "|---|---|---|"]
        lines.append(row(case, outcome))
    return "\n".join(lines) + "\n"


def row(case: Case, outcome: Outcome) -> str:
    message = "<br>".join(map(_cell, outcome.err.splitlines())) or "(none: it is read)"
    return f"| {_cell(case.name)} | {outcome.code} | {message} |"


def _cell(text: str) -> str:
    for character in "\\|<>*_[]`":
        text = text.replace(character, "\\" + character)
    return text
