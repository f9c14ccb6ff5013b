"""No check depends on what lies untracked in the checkout: runs, logs of trackers, own scripts."""

import shutil
from pathlib import Path

import pytest
from programs import python

ROOT = Path(__file__).parents[2]
PACKAGES = ("benchmarks", "cluster", "daal", "docs", "pipelines", "tests")
BAD_STYLE = "import sys, os\nx=1;y = 'a'\ndef f( a ):\n  return eval(a)\n"
BAD_TEST = "import no_such_module\n\ndef test_it():\n    assert False\n"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout in which much lies about."""
    copy = tmp_path_factory.mktemp("checkout")
    skip = shutil.ignore_patterns("__pycache__", "_build", "golden", "pictures")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", copy)
    # Folders by the names of the tests' own modules, as runs/ of `make demo`, and by those of
    # packages that are not installed everywhere.
    helpers = [path.stem for path in (ROOT / "tests").rglob("*.py")]
    for folder in (copy, *(copy / name for name in {*helpers, "wandb", "cuml", "ray", "torch"})):
        folder.mkdir(exist_ok=True)
        (folder / "bad_style.py").write_text(BAD_STYLE)
        (folder / "test_bad.py").write_text(BAD_TEST)
    return copy


USE = "import cuml, wandb\n\nwandb.init()\ncuml.DBSCAN()"


@pytest.mark.parametrize(
    "command", ["ruff check --no-cache .", "ruff format --check --no-cache .", "mypy"]
)
def test_checks_pass(checkout, command):
    use = ["--cache-dir=/dev/null", "-c", USE] if command == "mypy" else []
    done = python("-m", *command.split(), *use, cwd=checkout)
    assert done.returncode == 0, done.stdout


def test_pytest_collects_our_tests_alone(checkout):
    given = ["--collect-only", "-p", "no:cacheprovider", "--ignore-glob=tests/[!u]*/*"]
    given += ["--ignore=tests/unit/cluster", "--ignore-glob=tests/unit/test_[!p]*"]
    done = python("-m", "pytest", *given, cwd=checkout)
    found = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert "tests/unit/test_plan.py" in found, done.stdout
    assert all(name.startswith("tests/") for name in found)
