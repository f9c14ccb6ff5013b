"""The command starts this project's packages, and says so where others hide them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def daal(cwd: Path, *path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "daal", "--version"],
        cwd=cwd, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))} | environment,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["cluster", "pipelines"])
@pytest.mark.parametrize("kind", ["module", "package", "namespace"])
def test_a_foreign_package_in_front__is_one_sentence(name: str, kind: str, tmp_path: Path) -> None:
    if kind == "module":
        (tmp_path / f"{name}.py").write_text("def kmeans(x): return x\n")
    else:
        (tmp_path / name).mkdir()
        if kind == "package":
            (tmp_path / name / "__init__.py").touch()
    started = daal(tmp_path, tmp_path, ROOT)
    if kind == "namespace":  # a folder without __init__.py hides nothing
        assert started.returncode == 0, started.stderr
        return
    assert started.returncode == 2
    assert len(started.stderr.splitlines()) == 1
    assert f"another {name}, {tmp_path}" in started.stderr and "PYTHONPATH" in started.stderr


@pytest.mark.parametrize("name", ["cluster", "pipelines"])
def test_a_foreign_package_installed_over_ours__is_one_sentence(name: str, tmp_path: Path) -> None:
    for package in ("daal", "cluster", "pipelines"):
        shutil.copytree(ROOT / package, tmp_path / package)
    assert daal(tmp_path, tmp_path).returncode == 0
    (tmp_path / name / "__init__.py").write_text("from .matrix import Matrix\n")
    started = daal(tmp_path, tmp_path)
    assert started.returncode == 2
    assert f"pip uninstall {name}" in started.stderr and len(started.stderr.splitlines()) == 1


def test_the_script_starts_the_launcher() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"daal": "daal.__main__:main"}
    assert project["name"] == "daal-reid"
