"""The documentation builds, its Python runs, its commands parse to the last setting."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from pages import FENCE, PAGES, ROOT, blocks, command_lines, text_of
from programs import python

from daal.config import fields
from daal.load_config import load_config
from pipelines import cli
from pipelines.tools.shipped import read_config

PLACEHOLDERS = {"RECIPE": "demo", "SUITE": "table4", "seed=SEED": "seed=0"}
CAPTION = re.compile(r":caption: (\S+)\n\n")

# The site


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


def test_the_scan_finds_python():
    assert {"README.md", "library.md"} <= {page.name for page in PAGES if blocks(page, "python")}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_parse(page, tmp_path, monkeypatch):
    for info, code in FENCE.findall(text_of(page)):
        if info == "{code-block} yaml" and (caption := CAPTION.match(code)):
            (tmp_path / caption[1]).write_text(code[caption.end() :])
    monkeypatch.chdir(tmp_path)
    for line in command_lines(page):
        check_line(line)


def test_the_scan_finds_commands():
    num_daal = sum(
        bool(_of_daal(shlex.split(s, comments=True))) for p in PAGES for s in command_lines(p)
    )
    assert num_daal > 30


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
