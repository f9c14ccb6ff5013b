"""The command as a user meets it: messages and exit codes, in real processes."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from pipelines.tools.shipped import shipped_names


def daal(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture
def data(tiny_world: Path) -> list[str]:
    return [f"source.root={tiny_world}/source", f"target.root={tiny_world}/target"]


def test_validate__counts_what_a_run_would_read(data: list[str]) -> None:
    result = daal("validate", "demo", *data)
    assert result.returncode == 0, result.stderr
    rows = [re.findall(r"[\w,]+", line) for line in result.stdout.splitlines()]
    assert ["source", "train", "135", "12", "4"] in rows  # images, people, cameras
    assert ["source", "query", "23", "6", "4"] in rows
    assert "nothing was started" in result.stdout


def test_dry_run__leaves_no_folder(data: list[str], tmp_path: Path) -> None:
    result = daal("adapt", "demo", *data, f"out={tmp_path}/run", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "run").exists()


def test_unknown_key__exit_2_and_the_nearest_name(data: list[str]) -> None:
    result = daal("adapt", "demo", *data, "cluster.epz=0.4")
    assert result.returncode == 2
    assert 'error: "cluster.epz" is not a known key; did you mean "cluster.eps"?' in result.stderr
    assert '[from override "cluster.epz=0.4"]' in result.stderr
    assert "Traceback" not in result.stderr


def test_unknown_recipe__exit_2_and_the_shipped_ones() -> None:
    result = daal("adapt", "nonsense")
    assert result.returncode == 2
    assert ", ".join(shipped_names()) in result.stderr
    result = daal("adapt", "fats")
    assert 'there is no recipe "fats"; did you mean "fast"? Shipped are' in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["adpat", "fast"], "No such command 'adpat'. Did you mean 'adapt'"),
        (["config", "shwo"], "No such command 'shwo'. Did you mean 'show'? See \"daal config"),
        (["adapt"], "Missing argument 'recipe'. See \"daal adapt --help\"."),
        (["adapt", "demo", "--drry"], "No such option: --drry (Possible options: --dry-run) See"),
        (["label", "x.npy", "--out"], "Option '--out' requires an argument."),
        (["ablate", "table4", "--seeds", "none"], "Invalid value for '--seeds': Input should be"),
        (["adapt", "demo", "--json", "-v"], "--json can't go with -v"),
    ],
)
def test_wrong_use__exit_2_and_one_line_like_any_error(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code = daal_here(monkeypatch, *arguments)
    output = capsys.readouterr()
    assert (code, output.out) == (2, "")
    (line,) = output.err.splitlines()
    assert line.startswith(f"error: {says}")


def daal_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The same without a process of its own."""
    from pipelines import cli

    monkeypatch.setattr(sys, "argv", ["daal", *arguments])
    try:
        cli.main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def test_nothing_given__the_help_and_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert daal_here(monkeypatch, "config") == 2
    output = capsys.readouterr()
    assert "Usage" in output.out and "error" not in output.err


def test_completion__is_what_a_shell_can_take() -> None:
    result = subprocess.run(
        [str(Path(sys.executable).with_name("daal"))],
        env={**os.environ, "_DAAL_COMPLETE": "complete_bash", "COMP_WORDS": "daal ad",
             "COMP_CWORD": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.stdout.split() == ["adapt"], result.stderr


def test_dry_run_as_json(
    data: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert daal_here(monkeypatch, "adapt", "demo", *data, "--dry-run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["source"]["train"] > 0


def test_ablate_dry_run__starts_nothing_and_draws_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert daal_here(monkeypatch, "ablate", "table4", "--seeds", "1", "--dry-run") == 0
    assert len(capsys.readouterr().out.splitlines()) == 9
    assert list(tmp_path.iterdir()) == []


def test_a_suite_on_images_that_cannot_be_scored__exit_3_before_anything_starts(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source, target = (item.partition("=")[2] for item in data)
    shutil.copytree(target, tmp_path / "target")
    for split in ("query", "bounding_box_test"):
        shutil.rmtree(tmp_path / "target" / split)
    monkeypatch.chdir(tmp_path)
    roots = [f"source.root={source}", "target.root=target"]
    assert daal_here(monkeypatch, "ablate", "table4", *roots) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: target.root=target has no query or no gallery images")
    assert [file.name for file in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"title: caf\xe9", "isn't UTF-8 text (byte 10); save it as UTF-8."),
        (b"title: [x", "is not valid YAML"),
        (b"- 1", "must hold keys and values, like title: mine, and not a list."),
        (b"title: !!python/name:os.system x", "os.system isn't read"),
        (b"title: x\nrows: [{name: y}]\nsedes: 1", 'not a known key; did you mean "seeds"?'),
        (b"title: x\nrows: [{name: y, settings: [clutser.k1=3]}]",
         '"clutser" is not a known key; did you mean "cluster"? [from override "clutser.k1=3"]'),
    ],
)  # fmt: skip
def test_a_suite_that_is_none__exit_2_and_why(
    content: bytes, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_bytes(content)
    assert daal_here(monkeypatch, "ablate", "mine.yaml") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line
    assert [file.name for file in tmp_path.iterdir()] == ["mine.yaml"]


def test_size_without_data__exit_3_and_the_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert daal_here(monkeypatch, "size", "demo") == 3
    assert "source.root is not set" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["absent", "empty", "no_train"])
def test_bad_folder__exit_3_and_the_folder(broken: str, data: list[str], tmp_path: Path) -> None:
    root = tmp_path / "set"
    if broken != "absent":
        root.mkdir()
    if broken == "no_train":
        (root / "query").mkdir()
    result = daal("validate", "demo", data[0], f"target.root={root}")
    assert result.returncode == 3, result.stderr
    assert result.stderr.startswith("error: ")
    assert str(root) in result.stderr.replace("\n", "")
    assert "Traceback" not in result.stderr


def test_root_not_set__exit_3() -> None:
    result = daal("validate", "paper", "network.weights=none")
    assert result.returncode == 3
    assert "source.root is not set" in result.stderr


def test_weights_file_that_is_none__exit_4(data: list[str], tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_text("no")
    result = daal("validate", "demo", *data, f"network.weights={file}")
    assert result.returncode == 4, result.stderr
    assert str(file) in result.stderr.replace("\n", "")


def test_not_a_features_file__exit_3(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    file.write_text("no")
    result = daal("evaluate", str(file))
    assert result.returncode == 3
    assert "is not a features file" in result.stderr


def test_config_show__is_the_whole_resolved_recipe() -> None:
    result = daal("config", "show", "paper", "seed=5")
    assert result.returncode == 0
    assert "seed: 5" in result.stdout
    assert "epsilon: 0.9" in result.stdout


def test_synth__leaves_a_folder_of_other_things_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("not to be touched")
    result = daal("synth", str(tmp_path))
    assert result.returncode == 3
    assert (tmp_path / "mine.txt").read_text() == "not to be touched"


def test_version() -> None:
    assert daal("--version").stdout == f"daal {version('daal-reid')}\n"
