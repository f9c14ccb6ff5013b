"""What the documentation names is there: commands, keys, files, modules, messages, metrics."""

import ast
import pkgutil
import re
from functools import cache

import pytest
import typer
from pages import FENCE, PAGES, ROOT, spans, text_of

from daal import errors
from daal.config import fields
from pipelines import cli
from pipelines.show.gauges import GAUGES
from pipelines.tools.shipped import RECIPES

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)

# Words in backticks


@each_page
def test_what_is_in_backticks_exists(page):
    wrong = [span for span in spans(page) if not is_there(span)]
    assert wrong == [], "renamed, or misspelt"


def test_the_look_up_finds():
    wrong = ["daal adopt", "cluster.epz=0.4", "daal.losses.no_loss", "tests/unit/test_none.py"]
    assert not any(map(is_there, wrong)) and not is_there("none.py")
    right = ["daal config show fast", "ray.*", "cluster.centroids.centroids", "plan.py"]
    assert all(map(is_there, right))


def is_there(span):
    """Commands by their verb, keys, modules and what they define, files. All else passes."""
    if match := re.match(r"daal ([a-z]+)\b", span):
        return match[1] in typer.main.get_command(cli.app).commands
    if re.fullmatch(r"(tests|docs|daal|cluster|pipelines|benchmarks)/[\w./*-]+", span):
        return span.startswith("docs/_build") or any(ROOT.glob(span))
    if re.fullmatch(r"\w+\.py", span):
        return span in _python_files()
    name = re.sub(r"\.\*$|=.*$", "", span)
    if re.fullmatch(rf"({'|'.join(_sections())})(\.\w+)+", name):
        return any(f"{key}.".startswith(f"{name}.") for key in fields()) or _resolves(name)
    return True


@cache
def _sections():
    sections = {key.partition(".")[0] for key in fields() if "." in key}
    return (*sorted(sections), "daal", "cluster", "pipelines", "benchmarks")


@cache
def _python_files():
    folders = ("daal", "cluster", "pipelines", "benchmarks", "tests", "docs")
    return frozenset(path.name for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _resolves(name):
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@each_page
def test_relative_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page))):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


def messages():
    """Every text in the code, with an ellipsis for what is filled in, and whose error it is."""
    kinds = {kind.__name__ for kind in errors.DaalError.__subclasses__()}
    for package in ("daal", "cluster", "pipelines"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(text_of(path))
            raised = {
                node.args[0]: node.func.id
                for node in ast.walk(tree)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
                and node.func.id in kinds and node.args
            }  # fmt: skip
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                    yield "".join(map(str, parts)), raised.get(node)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value, raised.get(node)


def test_troubleshooting_quotes_what_the_program_says():
    known = list(messages())
    code = None
    num_quoted = 0
    for line in text_of(ROOT / "docs" / "troubleshooting.md").splitlines():
        if line.startswith("## "):
            code = int(line.split()[2].rstrip(":")) if line.startswith("## Exit ") else None
        if not re.fullmatch(r"`.+`", line):
            continue
        num_quoted += 1
        quoted = re.compile(".*".join(map(re.escape, line[1:-1].split("…"))))
        found = [kind for text, kind in known if quoted.search(text)]
        assert found, f"nothing in the code says {line}"
        for kind in filter(None, found):
            assert getattr(errors, kind).exit_code == code, line
    assert num_quoted > 50


def test_monitoring_names_every_metric():
    page = text_of(ROOT / "docs" / "monitoring.md")
    assert [name for name, _ in GAUGES.values() if f"`ray_{name}`" not in page] == []


def test_recipes_page_has_every_recipe_and_suites_are_named():
    page, readme = text_of(ROOT / "docs" / "recipes.md"), text_of(ROOT / "README.md")
    for recipe in RECIPES.glob("*.yaml"):
        assert f"### {recipe.stem}\n" in page and f"`{recipe.stem}`" in readme
    for suite in (ROOT / "pipelines" / "suites").glob("*.yaml"):
        assert f"`{suite.stem}`" in readme
