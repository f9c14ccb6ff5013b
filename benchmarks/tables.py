"""What all benchmarks have: options, and a table or JSON at the end."""

import argparse
import json
from pathlib import Path
from typing import Any


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser with --json, which says what the module's docstring begins with."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    return parser


def tell(given: argparse.Namespace, title: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """The rows, as a table or (with what else there is to say) as one object of JSON."""
    if given.json:
        print(json.dumps({"rows": rows, **more}))
    else:
        show(title, rows)


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """A table: a column for each key of the first row; other rows may lack some."""
    columns = list(rows[0])
    cells = [[_text(row.get(column, "")) for column in columns] for row in rows]
    print(f"\n{title}\n{aligned([columns, *cells])}")


def aligned(cells: list[list[str]]) -> str:
    """Lines of columns: the first to the left, the others to the right."""
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
    return f"{value:.3f}" if isinstance(value, float) else str(value)
