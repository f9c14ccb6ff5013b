"""benchmarks/gpu_first.py runs where there is no GPU, its checks can fail, its sentences fit."""

import json
import math
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from recorded_graph import RecordedGraph
from torch import Tensor

ROOT = Path(__file__).parents[2]
Run = Callable[..., int]


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import gpu_first

    return gpu_first


@pytest.fixture
def run(first: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Its exit code; what it found is in found.json."""

    def run(*arguments: str) -> int:
        out = ["--out", str(tmp_path / "found.json")]
        monkeypatch.setattr(sys, "argv", ["gpu_first.py", "--quick", "--json", *out, *arguments])
        with pytest.raises(SystemExit) as end:
            first.main()
        return int(end.value.code or 0)

    return run


def as_a_program(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-m", "benchmarks.gpu_first", "--quick", "--budget", "3600",
            "--out", str(tmp_path / "found.json"), *arguments,
        ],
        cwd=ROOT, capture_output=True, text=True,
        # Two threads on cores that others use too mostly wait for each other.
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def rows_of(found: dict[str, Any], section: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found["sections"][section]["rows"]}


@pytest.mark.nightly
def test_phases_one_and_two__every_section_has_its_rows(tmp_path: Path, first: ModuleType) -> None:
    for phase in ("1", "2"):
        done = as_a_program(tmp_path, phase, "--json")
        assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert json.loads(done.stdout) == found
    sections = found["sections"]
    assert list(sections) == [*first.PHASES["1"], *first.PHASES["2"]]
    assert not any("failed" in each or "left_out" in each for each in sections.values())

    rows = {name: row for section in sections for name, row in rows_of(found, section).items()}
    assert len(rows) == sum(len(each["rows"]) for each in sections.values())
    assert not [row for row in rows.values() if row.get("ok") is False]
    assert sum("ok" in row for row in rows.values()) == 10
    assert {name for name, row in rows.items() if "left_out" in row} == {
        "tests marked gpu", "check: captured step", "goal 4 x 64x64 captured",
    }  # fmt: skip
    for name in (
        "training 4 x 64x64 eager",
        "goal 4 x 64x64 eager",
        "goal 4 x 64x64 compiled",
        "pseudo-labels 800 x 32",
        "evaluation 60 x 600 x 32",
    ):
        assert 0 < rows[name]["ratio"] < math.inf
    # The table of what each section found goes to the other stream.
    assert all(name in done.stderr for name in rows_of(found, "labels"))

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


@pytest.mark.nightly
def test_sections_beside_the_phases(tmp_path: Path) -> None:
    done = as_a_program(tmp_path, "extraction", "cuml")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    rows = rows_of(found, "extraction")
    assert {"extraction 4 x 64x64 bf16", "extraction 4 x 64x64 fp32"} < rows.keys()
    features = rows["bf16 features: 1 - cosine to fp32's"]
    assert features["cosine_loss_max"] < features["between_people"] / 10
    assert features["map_bf16"] == pytest.approx(features["map_fp32"], abs=0.02)
    assert rows_of(found, "cuml") == {"cuML": {"name": "cuML", "ratio": None, "left_out": "no GPU"}}


@pytest.mark.nightly
@pytest.mark.ray
def test_phase_three__whole_runs(tmp_path: Path) -> None:
    done = as_a_program(tmp_path, "3")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert rows_of(found, "doctor")["doctor"]["ok"]
    rows = rows_of(found, "runs")
    for images in ("auto", "jpeg"):
        assert rows[f"run images={images}"]["ok"]
        assert rows[f"  {images} iteration-02/estimate"]["seconds"] > 0
    assert any(text.startswith("Seconds of each estimate") for text in found["decides"])


def test_a_check_that_fails__exit_status_and_a_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import gpu_checks

    monkeypatch.setattr(gpu_checks, "_group_error", lambda *_: 0.5)
    checks = [gpu_checks._group_batch_norm, gpu_checks._augmentation]
    monkeypatch.setattr(gpu_checks, "CHECKS", checks)
    assert run("checks") == 1
    found = json.loads(capfd.readouterr().out)
    assert [row["ok"] for row in found["sections"]["checks"]["rows"]] == [False, True]
    assert any(text.startswith("WRONG: check: group batch norm") for text in found["decides"])


def test_a_check_that_breaks_is_a_row_too(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import gpu_checks

    def _broken(_: object) -> None:
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(gpu_checks, "CHECKS", [_broken])
    assert run("checks") == 1
    (row,) = json.loads(capfd.readouterr().out)["sections"]["checks"]["rows"]
    assert row["name"] == "check: broken" and "no kernel" in row["error"]


def test_calls_write_into_one_file__and_what_is_missing_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from benchmarks import gpu_host, gpu_search

    def half_done(bench: Any) -> None:
        bench.add("evaluation of a few", seconds=1.0, ratio=2.0)
        raise ValueError("a kernel is missing")

    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    monkeypatch.setattr(gpu_host, "goal", lambda bench: None)
    monkeypatch.setattr(gpu_search, "evaluation", half_done)
    assert [run("tests", "doctor"), run("goal"), run("evaluation")] == [0, 0, 1]
    found = json.loads((tmp_path / "found.json").read_text())
    sections = found["sections"]
    assert list(sections) == ["tests", "doctor", "goal", "evaluation"]
    assert sections["tests"]["rows"][0]["left_out"] == "no GPU"
    assert sections["doctor"]["left_out"].startswith("no package ray: python -m benchmarks.gpu_fi")
    assert sections["evaluation"]["failed"] == "ValueError: a kernel is missing"
    assert len(sections["evaluation"]["rows"]) == 1
    assert any("BROKE" in text and "a kernel is missing" in text for text in found["decides"])
    assert not list(tmp_path.glob("*.new"))

    monkeypatch.setattr(
        gpu_search, "evaluation", lambda bench: bench.add("whole", 1.0, seconds=1.0)
    )
    assert run("evaluation") == 0
    again = json.loads((tmp_path / "found.json").read_text())["sections"]
    assert list(again) == list(sections) and "failed" not in again["evaluation"]


def test_no_time_left__rows_say_so(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("host", "goal", "labels", "--budget", "0") == 0
    sections = json.loads(capfd.readouterr().out)["sections"]
    left_out = {row.get("left_out") for each in sections.values() for row in each["rows"]}
    assert left_out <= {"no time left", "a CUDA graph needs a GPU"} and "no time left" in left_out


def test_points_and_names(first: ModuleType, run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert first.points("1000000x64") == (1_000_000, 64)
    assert run("4") == 2
    assert "'4' is neither a phase (1, 2, 3) nor a section" in capfd.readouterr().err


def test_the_captured_step_that_is_measured__trains_as_the_other_one(
    first: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import gpu_checks, gpu_host, gpu_training

    bench = first.Bench(Namespace(quick=True, points=None, json=True))
    plain, captured = (gpu_training.Ours(bench, bench.sizes.check) for _ in range(2))

    def state() -> list[Tensor]:
        kept = captured.optimizer.state.values()
        momentum = [each["momentum_buffer"] for each in kept if "momentum_buffer" in each]
        return [*captured.network.state_dict().values(), *momentum, captured.diverged]

    graph = RecordedGraph(state)
    monkeypatch.setattr(gpu_training, "CudaGraph", lambda: graph)
    step = gpu_host._after_its_capture(captured)
    step()
    for _ in range(gpu_training.WARM_UP + 2):
        plain.step()
    assert (graph.num_captures, graph.num_replays) == (1, 2)
    assert gpu_checks._same_bits(gpu_checks._state(plain), gpu_checks._state(captured))


# ---- Wheels -----------------------------------------------------------------------------

BARE = """
import sys

import pytest

import benchmarks.gpu_checks, benchmarks.gpu_first, benchmarks.gpu_host, benchmarks.gpu_search
import benchmarks.gpu_training
from benchmarks.gpu_runs import tests_marked_gpu

options = ["--collect-only", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
failed = pytest.main([*options, *tests_marked_gpu()])
assert "ray" not in sys.modules
sys.exit(failed)
"""


@pytest.mark.nightly
def test_the_wheels_of_the_first_line_are_enough_for_two_phases(
    first: ModuleType, tmp_path: Path
) -> None:
    from benchmarks.gpu_wheels import CODE, TESTS, requirements

    # An installation of PyTorch and these packages alone.
    site = Path(pytest.__file__).parents[1]
    for package in requirements([*CODE, *TESTS, "torch"]):
        for file in metadata.files(package) or []:
            here = tmp_path / file.parts[0]
            if file.parts[0] != ".." and not here.exists():
                here.symlink_to(site / file.parts[0])
    done = subprocess.run(
        [sys.executable, "-S", "-c", BARE], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_wheels__lines_for_a_shell(first: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu_wheels import download_lines

    text = download_lines()
    base, whole = (line for line in text.splitlines() if " pip download " in line)
    assert " numba==" in base and " pydantic-core==" in base and " ray==" not in base
    assert " ray==" in whole and " aiohttp==" in whole and " numba==" not in whole
    assert all(" torch==" not in line and " nvidia-" not in line for line in (base, whole))
    assert "--python-version 3.12" in base and "--no-deps" in base


# ---- What figures decide ----------------------------------------------------------------


def section(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"device": "H200", "quick": False, "rows": list(rows), **more}


HOST = {"name": "host 32 x 384x128", "host_ms": 18.0, "alone_ms": 18.5, "steady_ms": 18.0,
        "batch_steady_ms": 0.4, "ratio": None}  # fmt: skip
LABELS = [
    {"name": "pseudo-labels 32621 x 2048", "seconds": 0.8},
    {"name": "  products", "seconds": 0.3}, {"name": "  distances", "seconds": 0.2},
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "found", "says"),
    [
        ("checks", section({"name": "check: step", "ok": True}), "Right: 1 of 1 (check) hold."),
        ("checks", section({"name": "check: step", "ok": False, "error": "waits"}),
         "WRONG: check: step (waits). Mend it"),
        ("host", section(HOST), "Bound by the host: 32 x 384x128 (18.0 ms against 18.5 ms)."),
        ("host", section(HOST | {"host_ms": 9.0}), "Bound by the device: 32 x 384x128"),
        ("host", section(HOST | {"graph_steady_ms": 8.0, "ratio": 0.44}),
         "Bound by the host: 32 x 384x128 (18.0 ms against 8.0 ms)."),
        ("host", section(HOST | {"graph_steady_ms": 8.0, "ratio": 0.44}),
         "As one CUDA graph a step takes 0.44 to 0.44 of its time: keep ray.cuda_graph=auto."),
        ("host", section(HOST | {"graph_steady_ms": 18.0, "ratio": 1.0}), "a graph gains little"),
        ("host", section(HOST | {"graph": "not captured: x"}), "No CUDA graph of a step: not capt"),
        ("host", section(HOST), "take 2% of 32 x 384x128: nothing is left to gain there."),
        ("host", section(HOST | {"batch_steady_ms": 4.0}), "take 22% of 32 x 384x128: look there"),
        ("goal", section(
            {"name": "goal 256 x 384x128 eager", "of_bare": 0.8, "images_per_s": 2900.0},
            {"name": "goal 256 x 384x128 captured", "of_bare": 0.9, "images_per_s": 3100.0}),
         "captured) reaches 0.90 of the bare compiled one (goal 0.85: reached) and 3,100 images/s "
         "(goal 3000: reached)."),
        ("goal", section({"name": "goal x eager", "of_bare": 0.8, "images_per_s": 2900.0},
                         {"name": "goal x captured", "left_out": "no"}), "(goal 0.85: MISSED)"),
        ("parts", section({"name": "a: backward", "share": 0.4}, {"name": "a: loss", "share": 0.1},
                          {"name": "kernel wgrad", "share": 0.2}),
         "The part of a step that takes most: a: backward, 40%."),
        ("labels", section(*LABELS), "0.80 s (goal 1: reached); the stage that costs most is prod"),
        ("labels", section(LABELS[0] | {"seconds": 1.2}, LABELS[1]), "1.20 s (goal 1: MISSED)"),
        ("labels", section({"name": "pseudo-labels 9 x 9", "seconds": 1.2}, LABELS[1]),
         "pseudo-labels 9 x 9: 1.20 s; the stage that costs most is products, 0.30 s."),
        ("evaluation", section({"name": "evaluation 9", "seconds": 0.5, "ratio": 1.5}),
         "evaluation 9: 0.50 s, 1.50 of the bare product."),
        ("runs", section({"name": "run images=auto", "ok": True, "on": "H200",
                          "images_per_s": 900.0, "input_share": 0.02},
                         {"name": "  auto iteration-01/estimate", "seconds": 5.0},
                         {"name": "  auto iteration-02/estimate", "seconds": 0.5}),
         "Seconds of each estimate, in the order of the runs: 5.0, 0.5."),
        ("runs", section(left_out="no package ray"), "Section runs was left out: no package ray."),
        ("checks", section(device="cpu"), "On a CPU or with tiny sizes: checks."),
    ],
)  # fmt: skip
def test_verdicts(first: ModuleType, name: str, found: dict[str, Any], says: str) -> None:
    assert says in "\n".join(first.verdicts({name: found}))
