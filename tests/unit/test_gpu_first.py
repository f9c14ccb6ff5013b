"""benchmarks/gpu_first.py runs where there is no GPU, its checks can fail, its sentences fit."""

import json
import math
import os
import sys
from pathlib import Path

import pytest
from programs import python

from benchmarks import gpu_checks, gpu_features, gpu_first, gpu_training

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Its exit code; what it found is in found.json."""

    def run(*arguments):
        out = ["--out", str(tmp_path / "found.json")]
        monkeypatch.setattr(sys, "argv", ["gpu_first.py", "--quick", "--json", *out, *arguments])
        with pytest.raises(SystemExit) as end:
            gpu_first.main()
        return int(end.value.code or 0)

    return run


def as_a_program(tmp_path, *arguments):
    # Two threads on cores that others use too mostly wait for each other.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    given = ["--quick", "--budget", "3600", "--out", tmp_path / "found.json", *arguments]
    return python("-m", "benchmarks.gpu_first", *given, cwd=ROOT, env=environment)


def rows_of(found, section):
    return {row["name"]: row for row in found["sections"][section]["rows"]}


@pytest.mark.nightly
def test_phases_one_and_two__every_section_has_its_rows(tmp_path):
    for phase in ("1", "2"):
        done = as_a_program(tmp_path, phase, "--json")
        assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert json.loads(done.stdout) == found
    sections = found["sections"]
    assert list(sections) == [*gpu_first.PHASES["1"], *gpu_first.PHASES["2"]]
    assert not any("failed" in each or "left_out" in each for each in sections.values())

    rows = {name: row for section in sections for name, row in rows_of(found, section).items()}
    assert len(rows) == sum(len(each["rows"]) for each in sections.values())
    assert not [row for row in rows.values() if row.get("ok") is False]
    assert sum("ok" in row for row in rows.values()) == 6
    assert {name for name, row in rows.items() if "left_out" in row} == {
        "tests marked gpu", "check: captured step", "goal 4 x 64x64 captured",
    }  # fmt: skip
    kinds = ("step ", "goal ", "pseudo-labels ", "evaluation ", "extraction ")
    measured = [row for name, row in rows.items() if name.startswith(kinds)]
    assert all(0 < row["ratio"] < math.inf for row in measured if "left_out" not in row)
    # ResNet-18: 3.6 GFLOP forward at 224x224, thrice that with backward.
    step = rows["step 4 x 64x64"]
    flops = step["tflop_per_s"] * 1e12 * 4 / step["images_per_s"]
    assert flops == pytest.approx(4 * 3 * 3.6e9 * (64 / 224) ** 2, rel=0.1)
    assert sum(name.startswith("kernel ") for name in rows) == 15
    assert any(text.startswith("step 4 x 64x64 is bound by the") for text in found["decides"])


@pytest.mark.nightly
@pytest.mark.ray
def test_phase_three__whole_runs(tmp_path):
    done = as_a_program(tmp_path, "3")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert rows_of(found, "doctor")["doctor"]["ok"]
    rows = rows_of(found, "runs")
    for images in ("auto", "jpeg"):
        assert rows[f"run images={images}"]["ok"]
        assert rows[f"  {images} iteration-02/estimate"]["seconds"] > 0


def test_a_check_that_fails__exit_status_and_a_sentence(run, monkeypatch, capfd):
    monkeypatch.setattr(gpu_checks, "_group_error", lambda *_: 0.5)

    def _broken(_):
        raise RuntimeError("no kernel for this device")

    checks = [gpu_checks._group_batch_norm, _broken, gpu_checks._left_out_step]
    monkeypatch.setattr(gpu_checks, "CHECKS", checks)
    assert run("checks") == 1
    found = json.loads(capfd.readouterr().out)
    rows = found["sections"]["checks"]["rows"]
    assert [row["ok"] for row in rows] == [False, False, True] and "no kernel" in rows[1]["error"]
    assert any(text.startswith("WRONG: check: group batch norm") for text in found["decides"])


def test_calls_write_into_one_file__and_what_is_missing_is_named(run, monkeypatch, tmp_path):
    def half_done(bench):
        bench.add("evaluation of a few", seconds=1.0, ratio=2.0)
        raise ValueError("a kernel is missing")

    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    monkeypatch.setattr(gpu_training, "goal", lambda bench: None)
    monkeypatch.setattr(gpu_features, "evaluation", half_done)
    assert [run("tests", "doctor"), run("goal"), run("evaluation")] == [0, 0, 1]
    found = json.loads((tmp_path / "found.json").read_text())
    sections = found["sections"]
    assert list(sections) == ["tests", "doctor", "goal", "evaluation"]
    assert sections["tests"]["rows"][0]["left_out"] == "no GPU"
    assert sections["doctor"]["left_out"].startswith("no package ray; see docs/first_gpu.md")
    assert sections["evaluation"]["failed"] == "ValueError: a kernel is missing"
    assert len(sections["evaluation"]["rows"]) == 1
    assert any("BROKE" in text and "a kernel is missing" in text for text in found["decides"])
    assert not list(tmp_path.glob("*.new"))

    monkeypatch.setattr(
        gpu_features, "evaluation", lambda bench: bench.add("whole", 1.0, seconds=1.0)
    )
    assert run("evaluation") == 0
    again = json.loads((tmp_path / "found.json").read_text())["sections"]
    assert list(again) == list(sections) and "failed" not in again["evaluation"]


def test_no_time_left__rows_say_so(run, capfd):
    assert run("steps", "goal", "labels", "--budget", "0") == 0
    sections = json.loads(capfd.readouterr().out)["sections"]
    left_out = {row.get("left_out") for each in sections.values() for row in each["rows"]}
    assert left_out <= {"no time left", "a CUDA graph needs a GPU"} and "no time left" in left_out
