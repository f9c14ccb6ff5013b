"""The command starts this project's packages, and says so where others hide them."""

import os
import shutil
from pathlib import Path

import pytest
from programs import python

ROOT = Path(__file__).parents[2]


def daal(cwd, *path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    return python("-P", "-m", "daal", "--version", cwd=cwd, env=environment)


@pytest.mark.parametrize("foreign", ["cluster.py", "pipelines/__init__.py"])
def test_a_foreign_package_in_front__is_one_sentence(foreign, tmp_path):
    (tmp_path / foreign).parent.mkdir(exist_ok=True)
    (tmp_path / foreign).touch()
    started = daal(tmp_path, tmp_path, ROOT)
    assert started.returncode == 2
    (line,) = started.stderr.splitlines()
    name = Path(foreign).parts[0].removesuffix(".py")
    assert f"another {name}, {tmp_path}" in line and "PYTHONPATH" in line


def test_a_folder_of_our_name_without_an_init__hides_nothing(tmp_path):
    (tmp_path / "cluster").mkdir()
    assert daal(tmp_path, tmp_path, ROOT).returncode == 0


def test_a_foreign_package_installed_over_ours__is_one_sentence(tmp_path):
    for package in ("daal", "cluster", "pipelines"):
        shutil.copytree(ROOT / package, tmp_path / package)
    assert daal(tmp_path, tmp_path).returncode == 0
    (tmp_path / "cluster/__init__.py").write_text("from .matrix import Matrix\n")
    started = daal(tmp_path, tmp_path)
    assert started.returncode == 2
    (line,) = started.stderr.splitlines()
    assert "pip uninstall cluster" in line
