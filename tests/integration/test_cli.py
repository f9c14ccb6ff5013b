"""The command as a user meets it, where it succeeds.

Wrong use and wrong input are in tests/faults/test_bad_input.py.
"""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from programs import daal, python


@pytest.fixture
def data(tiny_world):
    return [f"source.root={tiny_world}/source", f"target.root={tiny_world}/target"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_validate__counts_what_a_run_would_read(data):
    code, out, err = daal("validate", "demo", *data)
    assert code == 0, err
    rows = [re.findall(r"[\w,]+", line) for line in out.splitlines()]
    assert ["source", "train", "135", "12", "4"] in rows  # images, people, cameras
    assert ["source", "query", "23", "6", "4"] in rows
    assert "nothing was started" in out


def test_dry_run__leaves_no_folder(data, tmp_path):
    code, out, _ = daal("adapt", "demo", *data, f"out={tmp_path}/run", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["counts"]["source"]["train"] > 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("evaluate ~/f.parquet", "HOME/f.parquet"),
        ("config show ~/mine.yaml", "HOME/mine.yaml"),
        ("export x --format=safetensors --out=~/no/m.safetensors", "HOME/no;"),
        ("search ~/run ~/q.jpg ~/gallery", "the gallery HOME/gallery"),
        ("report ~/run", "HOME/run"),
        ("replay ~/step", "HOME/step"),
        ("validate demo target.root=~/data source.root=~/data", "root HOME/data"),
        ("ablate table1 --data market=~/m --data duke=~/d", "root HOME/"),
    ],
)
def test_a_home_folder_that_no_shell_has_expanded(command, says, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    code, _, err = daal(*command.split())
    said = err.replace(str(tmp_path / "home"), "HOME")
    assert code != 0 and says in said and "~" not in said
    assert not (tmp_path / "~").exists()


def test_nothing_given__the_help_and_no_error():
    code, out, err = daal("config")
    assert code == 2 and "Usage" in out and "error" not in err


def test_completion__is_what_a_shell_can_take():
    asked = {"_DAAL_COMPLETE": "complete_bash", "COMP_WORDS": "daal ad", "COMP_CWORD": "1"}
    script = Path(sys.executable).with_name("daal")
    result = subprocess.run([script], env=os.environ | asked, capture_output=True, text=True)
    assert result.stdout.split() == ["adapt"], result.stderr


def test_ablate_dry_run__starts_nothing_and_draws_nothing(tmp_path):
    code, out, _ = daal("ablate", "table4", "--seeds", "1", "--dry-run")
    assert code == 0 and len(out.splitlines()) == 9
    assert list(tmp_path.iterdir()) == []


def test_config_show__is_the_whole_resolved_recipe():
    code, out, _ = daal("config", "show", "paper", "seed=5")
    assert code == 0 and "seed: 5" in out and "epsilon: 0.9" in out


def test_version():
    done = python("-m", "pipelines.cli", "--version")
    assert done.stdout == f"daal {version('daal-reid')}\n"
