"""A run as the commands start it, in this process: its standard output, and what is tracked."""

import json

import pytest
from tiny_run import FinishedRun

from pipelines.commands.run import run_adaptation

pytestmark = pytest.mark.ray


def test_json_lines_and_nothing_else__then_quiet(
    finished_run: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in finished_run.stdout.splitlines()]
    out = finished_run.out
    assert lines[-1] == json.loads((out / "summary.json").read_text())
    kept = (out / "metrics.jsonl").read_text().splitlines()
    assert lines[:-1] == [json.loads(line) for line in kept]
    assert any("loss" in line for line in lines) and any("num_clusters" in line for line in lines)
    assert only_notes(finished_run.stderr)

    run_adaptation(finished_run.config, quiet=True)  # finished, and shown again
    output = capsys.readouterr()
    assert "direct transfer" in output.out and "iteration-01" in output.out
    assert only_notes(output.err)

    assert len(list((out / "tensorboard").iterdir())) == 2  # starts


def only_notes(text: str) -> bool:
    return all("note: " in line or "warning: " in line for line in text.splitlines())
