"""The documentation builds, its examples run, its commands parse, and what it names is there."""

import ast
import pkgutil
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import typer
from programs import python

from daal import errors
from daal.config import fields
from daal.load_config import load_config
from pipelines import cli
from pipelines.show.gauges import GAUGES
from pipelines.tools.shipped import RECIPES, read_config

ROOT = Path(__file__).parents[2]
TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(.*)\n((?:(?!```).*\n)*)^```$", re.MULTILINE)


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    return [code for info, code in FENCE.findall(text_of(page)) if info.strip() == language]


def spans(page):
    """What stands in single backticks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", text_of(page)))


def command_lines(page):
    """Lines of ```sh blocks and of indented ones, with continued lines joined."""
    indented = re.findall(r"^    (\S.*)$", FENCE.sub("", text_of(page)).replace("\\\n", " "), re.M)
    fenced = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in [*fenced, *indented] if line.strip()]


PLACEHOLDERS = {"RECIPE": "demo", "SUITE": "table4", "seed=SEED": "seed=0"}
CAPTION = re.compile(r":caption: (\S+)\n\n")


def test_the_site_builds_without_a_warning_and_asks_no_network(tmp_path):
    options = ["-m", "sphinx", "-W", "--keep-going", "--quiet"]
    built = python(*options, "-d", tmp_path / "read", ROOT / "docs", tmp_path / "site")
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").glob("*.html"))
    assert len(pages) >= len(list((ROOT / "docs").glob("*.md")))
    for page in pages:
        for tag in re.findall(r"<(?:script|img|link|iframe)\b[^>]*>", text_of(page)):
            assert "//" not in tag, f"{page.name} loads from elsewhere: {tag}"
    # The generators have seen the program: every key and command has its place to link to.
    config = text_of(tmp_path / "site" / "config.html")
    assert [key for key in fields() if f'id="confval-{key}"' not in config] == []
    commands = text_of(tmp_path / "site" / "commands.html")
    names = typer.main.get_command(cli.app).commands
    assert [name for name in names if f'id="daal-{name}"' not in commands] == []


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "python")], ids=lambda path: path.name
)
def test_python_blocks_run__one_after_the_other_and_without_ray(
    page, tiny_world, tmp_path, monkeypatch
):
    (tmp_path / "images").symlink_to(tiny_world / "target" / "bounding_box_train")
    rng = np.random.default_rng(0)
    people_PD = rng.normal(size=(60, 32))
    np.save(
        tmp_path / "features.npy", np.repeat(people_PD, 8, 0) + 0.2 * rng.normal(size=(480, 32))
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    names = {"__name__": "__main__"}
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_parse(page, tmp_path, monkeypatch):
    for info, code in FENCE.findall(text_of(page)):
        if info == "{code-block} yaml" and (caption := CAPTION.match(code)):
            (tmp_path / caption[1]).write_text(code[caption.end() :])
    monkeypatch.chdir(tmp_path)
    for line in command_lines(page):
        check_line(line)


@pytest.mark.parametrize(
    "line",
    [
        "daal adopt demo", "daal adapt demo --drier-run", "daal adapt demo cluster.epz=1",
        "daal config shew demo", "daal label f.npy cluster.k1=x", "make coffee",
        "python -m benchmarks.nothing", "python -m benchmarks.training --faster",
    ],
)  # fmt: skip
def test_the_check_finds(line):
    with pytest.raises(Exception):  # noqa: B017  of Typer's, of ours, or an assertion
        check_line(line)


def check_line(line):
    """Parse a command as the program would, to the last setting; nothing is run."""
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line, comments=True)]
    if arguments := _of_daal(words):
        check_daal(arguments[1:])
    if words[:1] == ["make"]:
        assert re.search(rf"^{words[1]}:", text_of(ROOT / "Makefile"), re.M), line
    for at, word in enumerate(words):
        if word.startswith("benchmarks."):
            source = text_of(ROOT / f"{word.replace('.', '/')}.py")
            options = [option for option in words[at + 1 :] if option.startswith("--")]
            assert [option for option in options if f'"{option}"' not in source] == [], line


def _of_daal(words):
    """From `daal` on, however it is called; empty if it isn't."""
    for at, word in enumerate(words):
        if word == "daal" or (at == 0 and Path(word).name == "daal"):
            return words[at:]
    return []


def check_daal(arguments):
    command = typer.main.get_command(cli.app)
    if arguments == ["--help"]:
        return
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    given = command.make_context(command.name, arguments).params
    settings = given.get("overrides") or []
    if "suite" in given:
        from pipelines.tools.ablate import configurations, read_suite

        suite = read_suite(given["suite"])
        suite = suite.model_copy(update={"recipe": given["recipe"] or suite.recipe})
        folders = dict(item.split("=") for item in given["data"] or [])
        configurations(suite, lambda name: read_config(name, []), settings, 1, "out", folders)
    elif "recipe" in given:
        read_config(given["recipe"], settings)
    else:
        load_config(None, settings)


each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)

# Words in backticks


@each_page
def test_what_is_in_backticks_exists(page):
    wrong = [span for span in spans(page) if not is_there(span)]
    assert wrong == [], "renamed, or misspelt"


def test_the_scans_find():
    assert {"README.md", "library.md"} <= {page.name for page in PAGES if blocks(page, "python")}
    lines = [shlex.split(line, comments=True) for page in PAGES for line in command_lines(page)]
    assert sum(bool(_of_daal(words)) for words in lines) > 30
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


def test_algorithm_1(tmp_path):
    # With more threads than idle cores, they mostly wait for each other.
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    given = ["--iterations=1", f"--out={tmp_path}"]
    done = python("examples/algorithm_1.py", *given, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("direct transfer: mAP ")
    assert re.match(r"iteration 1, [1-9]\d* clusters: mAP ", second)
