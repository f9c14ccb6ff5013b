"""A run as the commands start it, in this process: its standard output, and what is tracked."""

import json

import pytest
from tensorboardX.proto.event_pb2 import Event
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

    # Two starts; each place on each axis once.
    files = sorted((out / "tensorboard").iterdir())
    assert len(files) == 2
    steps: dict[str, list[int]] = {}
    for file in files:
        for tag, step in _points(file.read_bytes()):
            steps.setdefault(tag, []).append(step)
    assert steps["scores/map"] == [0, 1] and steps["clusters/num_clusters"] == [1]
    assert steps["adapt/loss/total"][-1] == 3
    assert all(found == sorted(set(found)) for found in steps.values())


def only_notes(text: str) -> bool:
    return all("note: " in line or "warning: " in line for line in text.splitlines())


def _points(data: bytes) -> list[tuple[str, int]]:
    found, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        found += [(value.tag, event.step) for value in event.summary.value]
        at += length + 16
    return found
