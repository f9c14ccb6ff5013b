"""Paths that begin with `~` where no shell has expanded it, through the command itself."""

import sys
from pathlib import Path

import pytest

from pipelines import cli


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate", "~/f.parquet"], "HOME/f.parquet"),
        (["config", "show", "~/mine.yaml"], "HOME/mine.yaml"),
        (["export", "x", "--format=safetensors", "--out=~/no/m.safetensors"], "HOME/no;"),
        (["search", "~/run", "~/q.jpg", "~/gallery"], "the gallery HOME/gallery"),
        (["report", "~/run"], "HOME/run"),
        (["replay", "~/step"], "HOME/step"),
        (["validate", "demo", "target.root=~/data", "source.root=~/data"], "root HOME/data"),
        (["ablate", "table1", "--data", "market=~/m", "--data", "duke=~/d"], "root HOME/"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_every_path_of_every_verb(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["daal", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code not in (0, None)
    error = capsys.readouterr().err.replace(str(tmp_path / "home"), "HOME")
    assert says in error and "~" not in error
    assert not (tmp_path / "~").exists()
