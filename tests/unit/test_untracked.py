"""No check depends on what lies untracked in the checkout: runs, logs of trackers, own scripts."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("benchmarks", "cluster", "daal", "docs", "pipelines", "tests")
LEFT_BY_TOOLS = ("runs", "wandb", "mlruns", "data", "lightning_logs", "outputs")
BAD_STYLE = "import sys, os\nx=1;y = 'a'\ndef f( a ):\n  return eval(a)\n"
BAD_TEST = "import no_such_module\n\ndef test_it():\n    assert False\n"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tool in a copy of the checkout in which much lies about."""
    copy = tmp_path_factory.mktemp("checkout")
    for package in PACKAGES:
        skip = shutil.ignore_patterns("__pycache__", "_build", "golden", "pictures")
        shutil.copytree(ROOT / package, copy / package, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", copy)
    # Folders by the names of the tests' own modules, as runs/ of `make demo`, and by those of
    # packages that are not installed everywhere.
    helpers = [path.stem for path in (ROOT / "tests").rglob("*.py")]
    for name in {*LEFT_BY_TOOLS, *helpers, "cuml", "ray", "torch"}:
        (copy / name).mkdir()
        (copy / name / "bad_style.py").write_text(BAD_STYLE)
        (copy / name / "test_bad.py").write_text(BAD_TEST)
    (copy / "mine.py").write_text(BAD_STYLE)
    (copy / "test_mine.py").write_text(BAD_TEST)

    def run(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", tool, *arguments], cwd=copy, capture_output=True, text=True
        )

    return run


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff(run: Run, arguments: list[str]) -> None:
    done = run("ruff", *arguments, "--no-cache", ".")
    assert done.returncode == 0, done.stdout


def test_mypy(run: Run, tmp_path: Path) -> None:
    code = "import cuml, wandb\n\nwandb.init()\ncuml.DBSCAN()"
    done = run("mypy", "--cache-dir", str(tmp_path), "-c", code)
    assert done.returncode == 0, done.stdout


def test_pytest_collects_our_tests_alone(run: Run) -> None:
    # Imports are slow.
    few = ("--ignore-glob=tests/*/test_[!p]*", "--ignore-glob=tests/*/test_p[!l]*",
           "--ignore=tests/gpu_guard")  # fmt: skip
    done = run("pytest", "--collect-only", "-p", "no:cacheprovider", *few)
    found = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert "tests/unit/test_plan.py" in found, done.stdout
    assert all(name.startswith("tests/") for name in found)
