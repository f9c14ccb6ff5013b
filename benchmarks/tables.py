"""What all benchmarks have: options, and a table or JSON at the end."""

import argparse
import json
import statistics
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
    """A table of rows with the same keys."""
    print(f"\n{title}")
    columns = list(rows[0])
    cells = [[_text(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in [columns, *cells]:
        first, *others = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *others]))


def median(values: list[float]) -> float:
    return float(statistics.median(values))


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
