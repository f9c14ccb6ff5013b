"""The Makefile's set-up, with a Python and a pip that only write down what they are told."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("Makefile", "pyproject.toml", "constraints.txt", "tests/faults/s3_server.txt")
PYTHON = """#!/bin/sh
case "$1" in
  -c) exit "${UNUSABLE:-0}" ;;
  --version) echo "Python 3.9.2" ;;
  *)
    for folder; do :; done
    mkdir -p "$folder/bin"
    printf '#!/bin/sh\\necho "$@" >> told\\nexit "${KILLED:-0}"\\n' > "$folder/bin/pip"
    chmod +x "$folder/bin/pip" ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def setup(checkout, **environment):
    return subprocess.run(
        ["make", "setup", "PYTHON=./python", "VENV=elsewhere/env"], cwd=checkout, text=True,
        capture_output=True, env={**os.environ, "MAKEFLAGS": "", **environment},
    )  # fmt: skip


def told(checkout):
    lines = (checkout / "told").read_text().splitlines()
    (checkout / "told").write_text("")
    return lines


def test_a_python_that_is_too_old_or_has_no_venv__is_named_and_nothing_is_made(checkout):
    done = setup(checkout, UNUSABLE="1")
    assert done.returncode != 0
    assert "error: ./python can't be used (Python 3.9.2): Python 3.11 or newer" in done.stderr
    assert "apt install python3-venv" in done.stderr and "make PYTHON=python3.12" in done.stderr
    assert not (checkout / "elsewhere").exists()


def test_an_installation_that_was_interrupted__is_made_again_in_whole(checkout):
    assert setup(checkout, KILLED="1").returncode != 0
    (interrupted,) = told(checkout)
    assert "--ignore-installed" not in interrupted
    assert setup(checkout).returncode == 0
    ours, server = told(checkout)
    assert ours == f"{interrupted} --ignore-installed" and "s3_server.txt" in server
    assert setup(checkout).returncode == 0 and told(checkout) == []

    # Other pins, an interruption, and back to the pins that were installed before.
    pins = (checkout / "constraints.txt").read_text()
    (checkout / "constraints.txt").write_text(f"{pins}x==1\n")
    assert setup(checkout, KILLED="1").returncode != 0
    (checkout / "constraints.txt").write_text(pins)
    told(checkout)
    assert setup(checkout).returncode == 0
    assert told(checkout)[0] == ours
