"""The documentation's pages, as the tests of them read them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(.*)\n((?:(?!```).*\n)*)^```$", re.MULTILINE)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return [code for info, code in FENCE.findall(text_of(page)) if info.strip() == language]


def spans(page: Path) -> list[str]:
    """What stands in single backticks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", text_of(page)))


def command_lines(page: Path) -> list[str]:
    """Lines of ```sh blocks and of indented ones, with continued lines joined."""
    indented = re.findall(r"^    (\S.*)$", FENCE.sub("", text_of(page)).replace("\\\n", " "), re.M)
    fenced = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in [*fenced, *indented] if line.strip()]
