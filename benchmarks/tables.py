"""What all benchmarks have: options, and a table or JSON at the end, alone on standard output."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser with --json, which says what the module's docstring begins with."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    return parser


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """What was given. From now on only `say` and `tell` write to standard output.

    What else is written there goes to standard error: Ray prints warnings from threads of its own,
    and programs that are started inherit the descriptor.
    """
    given = options.parse_args()
    given.results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout.flush()
    os.dup2(2, 1)
    return given


def say(given: argparse.Namespace, text: str) -> None:
    """A line of the result."""
    print(text, file=given.results, flush=True)


def tell(given: argparse.Namespace, title: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """The rows, as a table or (with what else there is to say) as one object of JSON."""
    say(given, json.dumps({"rows": rows, **more}) if given.json else f"\n{title}\n{table(rows)}")


def table(rows: list[dict[str, Any]]) -> str:
    """A column for each key of any row: the first to the left, the others to the right."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_text(row.get(key, "")) for key in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        rest = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *rest]).rstrip())
    return "\n".join(lines)


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Such as a run's journal.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
