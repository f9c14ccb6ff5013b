"""No check depends on what lies untracked in the checkout: runs, logs of trackers, own scripts."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("benchmarks", "cluster", "daal", "docs", "pipelines", "tests")
LEFT_BY_TOOLS = ("runs", "wandb", "mlruns", "data", "lightning_logs", "outputs")
BAD_STYLE = "import sys, os\nx=1;y = 'a'\ndef f( a ):\n  return eval(a)\n"
BAD_TEST = "import no_such_module\n\ndef test_it():\n    assert False\n"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout in which much lies about."""
    copy = tmp_path_factory.mktemp("checkout")
    for package in PACKAGES:
        skip = shutil.ignore_patterns("__pycache__", "_build", "golden", "pictures")
        shutil.copytree(ROOT / package, copy / package, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", copy)
    # Folders by the names of the tests' own modules, as runs/ of `make demo`, and by those of
    # packages that are not installed everywhere.
    helpers = [path.stem for path in (ROOT / "tests").rglob("*.py")]
    names = {*LEFT_BY_TOOLS, *helpers, "cuml", "ray", "torch"}
    for folder in (copy, *(copy / name for name in names)):
        folder.mkdir(exist_ok=True)
        (folder / "bad_style.py").write_text(BAD_STYLE)
        (folder / "test_bad.py").write_text(BAD_TEST)
    return copy


USE = "import cuml, wandb\n\nwandb.init()\ncuml.DBSCAN()"


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache", "."],
        ["ruff", "format", "--check", "--no-cache", "."],
        ["mypy", "--cache-dir=/dev/null", "-c", USE],
    ],
)
def test_checks_pass(checkout, command):
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=checkout, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_pytest_collects_our_tests_alone(checkout):
    arguments = ("--collect-only", "-p", "no:cacheprovider", "--ignore-glob=tests/*/test_[!p]*",
                 "--ignore-glob=tests/*/test_p[!l]*", "--ignore=tests/gpu_guard")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], cwd=checkout, capture_output=True, text=True
    )
    found = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert "tests/unit/test_plan.py" in found, done.stdout
    assert all(name.startswith("tests/") for name in found)
