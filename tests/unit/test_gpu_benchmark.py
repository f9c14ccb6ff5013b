"""benchmarks/gpu.py runs where there is no GPU, and its checks can fail."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import gpu

    return gpu


def run(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick", "--json", *arguments])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    return int(end.value.code or 0)


@pytest.mark.nightly
def test_quick_run__every_section_has_its_rows(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--quick", "--json", "--out", str(out)],
        cwd=ROOT,
        # Two threads on cores that others use too mostly wait for each other.
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert json.loads(out.read_text()) == found and found["device"] == "cpu"
    rows = {row["name"]: row for row in found["rows"]}
    assert len(rows) == len(found["rows"])
    assert not [row for row in rows.values() if row.get("ok") is False]
    assert sum("ok" in row for row in rows.values()) == 10
    assert {name for name, row in rows.items() if "left_out" in row} == {"cuML"}
    for name in (
        "training 4 x 64x64 eager",
        "extraction 4 x 64x64 bf16",
        "extraction 4 x 64x64 fp32",
        "pseudo-labels 800 x 32",
        "evaluation 60 x 600 x 32",
    ):
        assert 0 < rows[name]["ratio"] < math.inf
    # The table of what each section found goes to the other stream.
    assert all(name in done.stderr for name in rows)

    training, measured = rows["training 4 x 64x64 eager"], rows["measured copy and bf16 product"]
    # ResNet-18: 3.6 GFLOP forward at 224x224, thrice that with backward; 34 bytes for each of
    # 11.2 million weights, and results.
    flops = training["flop_floor_ms"] * measured["tflop_per_s"] * 1e9
    assert flops == pytest.approx(4 * 3 * 3.6e9 * (64 / 224) ** 2, rel=0.1)
    num_bytes = training["byte_floor_ms"] * measured["gb_per_s"] * 1e6
    assert 1 < num_bytes / (34 * 11.2e6) < 1.5
    shares = [row["share"] for name, row in rows.items() if name.startswith("4 x 64x64: ")]
    assert len(shares) == 6 and sum(shares) == pytest.approx(1)
    assert sum(name.startswith("kernel ") for name in rows) == 15
    features = rows["bf16 features: 1 - cosine to fp32's"]
    assert features["cosine_loss_max"] < features["between_people"] / 10
    assert features["map_bf16"] == pytest.approx(features["map_fp32"], abs=0.02)


def test_a_check_that_fails__exit_status(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    checks = sys.modules["benchmarks.gpu_checks"]
    monkeypatch.setattr(checks, "_group_error", lambda *_: 0.5)
    monkeypatch.setattr(checks, "CHECKS", [checks._group_batch_norm, checks._augmentation])
    assert run(gpu, monkeypatch, "--sections", "checks") == 1
    rows = json.loads(capfd.readouterr().out)["rows"]
    assert [row["ok"] for row in rows] == [False, True]


def test_a_check_that_breaks_is_a_row_too(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def _broken(_: object) -> None:
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(sys.modules["benchmarks.gpu_checks"], "CHECKS", [_broken])
    assert run(gpu, monkeypatch, "--sections", "checks") == 1
    (row,) = json.loads(capfd.readouterr().out)["rows"]
    assert row["name"] == "check: broken" and "no kernel" in row["error"]


def test_no_time_left__rows_say_so(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(gpu, monkeypatch, "--budget", "0") == 0
    rows = json.loads(capfd.readouterr().out)["rows"]
    assert [row["name"] for row in rows] == list(gpu.SECTIONS)
    assert all("--budget" in row["left_out"] for row in rows)


def test_points(gpu: ModuleType) -> None:
    assert gpu.points("1000000x64") == (1_000_000, 64)
