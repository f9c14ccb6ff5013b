"""Where compiled loops are kept: also in a container that has nowhere to write but /tmp."""

import os
import shutil
from pathlib import Path

import pytest
from programs import python

ROOT = Path(__file__).parents[3]
LOOP = """
from cluster.compiled import compiled_code_folder, kernel

@kernel
def twice(number):
    return 2 * number

print(twice(21), compiled_code_folder())
"""


@pytest.fixture
def read_only(tmp_path):
    """A copy of the code where no __pycache__ can be made, also by root."""
    for package in ("daal", "cluster"):
        shutil.copytree(
            ROOT / package, tmp_path / "code" / package, ignore=lambda *_: ["__pycache__"]
        )
    (tmp_path / "code/cluster/__pycache__").touch()
    (tmp_path / "code/cluster/loop.py").write_text(LOOP)
    return tmp_path / "code"


def run(code, scratch):
    nowhere = str(code / "cluster/__pycache__/home")
    environment = os.environ | {
        "HOME": nowhere, "XDG_CACHE_HOME": nowhere, "PYTHONPATH": str(code),
        "TMPDIR": str(scratch), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    environment.pop("NUMBA_CACHE_DIR", None)
    done = python("-P", "-m", "cluster.loop", cwd=scratch, env=environment)
    assert done.returncode == 0, done.stderr
    answer, _, folder = done.stdout.strip().partition(" ")
    return answer, folder


def test_no_home_and_read_only_code__a_private_temporary_folder(read_only, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    answer, folder = run(read_only, scratch)
    assert answer == "42"
    kept = scratch / f"daal-compiled-{os.getuid()}"
    assert Path(folder).is_relative_to(kept) and kept.stat().st_mode & 0o777 == 0o700
    assert list(Path(folder).glob("*.nbi"))


def test_a_folder_that_others_may_write__is_not_used(read_only, tmp_path):
    kept = tmp_path / "scratch" / f"daal-compiled-{os.getuid()}"
    kept.mkdir(parents=True)
    kept.chmod(0o777)
    assert run(read_only, tmp_path / "scratch") == ("42", "None")
    assert list(kept.iterdir()) == []
