"""The command as a user meets it: what it says where it succeeds, and wrong use.

Wrong input is in tests/faults/test_bad_input.py.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from pipelines import cli

Daal = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(tiny_world: Path) -> list[str]:
    return [f"source.root={tiny_world}/source", f"target.root={tiny_world}/target"]


@pytest.fixture
def daal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Daal:
    """The command in this process, in an empty folder: exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["daal", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def test_validate__counts_what_a_run_would_read(daal: Daal, data: list[str]) -> None:
    code, out, err = daal("validate", "demo", *data)
    assert code == 0, err
    rows = [re.findall(r"[\w,]+", line) for line in out.splitlines()]
    assert ["source", "train", "135", "12", "4"] in rows  # images, people, cameras
    assert ["source", "query", "23", "6", "4"] in rows
    assert "nothing was started" in out


def test_dry_run__leaves_no_folder(daal: Daal, data: list[str], tmp_path: Path) -> None:
    code, out, _ = daal("adapt", "demo", *data, f"out={tmp_path}/run", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["counts"]["source"]["train"] > 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["adpat", "fast"], "No such command 'adpat'. Did you mean 'adapt'"),
        (["adapt"], "Missing argument 'recipe'. See \"daal adapt --help\"."),
        (["adapt", "demo", "--drry"], "No such option: --drry (Possible options: --dry-run) See"),
        (["ablate", "table4", "--seeds", "none"], "Invalid value for '--seeds': Input should be"),
        (["adapt", "demo", "--json", "-v"], "--json can't go with -v"),
    ],
)
def test_wrong_use__exit_2_and_one_line_like_any_error(
    daal: Daal, arguments: list[str], says: str
) -> None:
    code, out, err = daal(*arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: {says}")


def test_nothing_given__the_help_and_no_error(daal: Daal) -> None:
    code, out, err = daal("config")
    assert code == 2 and "Usage" in out and "error" not in err


def test_completion__is_what_a_shell_can_take() -> None:
    result = subprocess.run(
        [str(Path(sys.executable).with_name("daal"))],
        env={**os.environ, "_DAAL_COMPLETE": "complete_bash", "COMP_WORDS": "daal ad",
             "COMP_CWORD": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.stdout.split() == ["adapt"], result.stderr


def test_ablate_dry_run__starts_nothing_and_draws_nothing(daal: Daal, tmp_path: Path) -> None:
    code, out, _ = daal("ablate", "table4", "--seeds", "1", "--dry-run")
    assert code == 0 and len(out.splitlines()) == 9
    assert list(tmp_path.iterdir()) == []


def test_a_suite_on_images_that_cannot_be_scored__exit_3_before_anything_starts(
    daal: Daal, data: list[str], tmp_path: Path
) -> None:
    source, target = (item.partition("=")[2] for item in data)
    shutil.copytree(target, tmp_path / "target")
    for split in ("query", "bounding_box_test"):
        shutil.rmtree(tmp_path / "target" / split)
    code, _, err = daal("ablate", "table4", f"source.root={source}", "target.root=target")
    (line,) = err.splitlines()
    assert code == 3
    assert line.startswith("error: target.root=target has no query or no gallery images")
    assert [file.name for file in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"title: caf\xe9", "isn't UTF-8 text (byte 10); save it as UTF-8."),
        (b"title: [x", "is not valid YAML"),
        (b"title: x\nrows: [{name: y}]\nsedes: 1", 'not a known key; did you mean "seeds"?'),
        (b"title: x\nrows: [{name: y, settings: [clutser.k1=3]}]",
         '"clutser" is not a known key; did you mean "cluster"? [from override "clutser.k1=3"]'),
    ],
)  # fmt: skip
def test_a_suite_that_is_none__exit_2_and_why(
    daal: Daal, content: bytes, says: str, tmp_path: Path
) -> None:
    Path("mine.yaml").write_bytes(content)
    code, _, err = daal("ablate", "mine.yaml")
    (line,) = err.splitlines()
    assert code == 2 and line.startswith("error: ") and says in line
    assert [file.name for file in tmp_path.iterdir()] == ["mine.yaml"]


def test_config_show__is_the_whole_resolved_recipe(daal: Daal) -> None:
    code, out, _ = daal("config", "show", "paper", "seed=5")
    assert code == 0 and "seed: 5" in out and "epsilon: 0.9" in out
    _, as_json, _ = daal("config", "show", "paper", "seed=5", "--json")
    assert json.loads(as_json) == yaml.safe_load(out)


def test_version() -> None:
    command = [sys.executable, "-m", "pipelines.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"daal {version('daal-reid')}\n"
