"""Lines on standard error, and text from outside that can't steer a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.text import Text

errors = Console(stderr=True)


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def plain(text: str) -> Text:
    """Text with names from outside, for rich: never read as markup."""
    return Text(printable(text))


def show(colour: str, kind: str, text: str) -> None:
    """One line on standard error, with its kind in colour."""
    line = f"[{colour}]{kind}:[/{colour}] {escape(printable(text))}"
    errors.print(line, highlight=False, soft_wrap=True, emoji=False)
