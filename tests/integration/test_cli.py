"""The command as a user meets it: messages and exit codes, in real processes."""

import subprocess
import sys
from pathlib import Path

import pytest


def daal(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.fixture
def data(tiny_world: Path) -> list[str]:
    return [f"source.root={tiny_world}/source", f"target.root={tiny_world}/target"]


def test_validate__counts_what_a_run_would_read(data: list[str]) -> None:
    result = daal("validate", "demo", *data)
    assert result.returncode == 0, result.stderr
    assert "source" in result.stdout
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
    assert "demo, fast, modern, paper, ssg, udap" in result.stderr


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
