"""Sections of benchmarks/gpu_first.py that start programs: tests, `daal doctor`, whole runs."""

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu_support import Bench, Row
from benchmarks.tables import json_lines

ROOT = Path(__file__).parents[1]
TESTED_BY = ("pytest", "hypothesis", "psutil", "pytest_timeout")
SECONDS = 600.0  # that a program may take
# Long enough for a second labelling by workers that are warm.
SETTINGS = [
    "pretrain.epochs=1", "iterations=2", "ray.num_workers=1", "ray.wait_minutes=0",
    "network.attention.zero_init=true", "supervised_bound=false",
]  # fmt: skip
LARGE = [
    "network.backbone=resnet50", "input.height=256", "input.width=128", "mixed_precision=true",
    "pretrain.batch_source=64", "adapt.batch_source=64", "adapt.batch_target=64", "adapt.epochs=2",
]  # fmt: skip
SMALL = ["adapt.epochs=1", "adapt.steps_per_epoch=3"]
IMAGES = ("auto", "jpeg")  # kept where there is room, and decoded at each use
NUM_IDS = {True: 12, False: 120}  # by --quick; 12 images of each


def tests(bench: Bench) -> None:
    if not bench.on_gpu:
        bench.add("tests marked gpu", left_out="no GPU")
        return
    for package in TESTED_BY:
        importlib.import_module(package)
    done, seconds = _python(
        "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *tests_marked_gpu()
    )
    if found := re.search(r"No module named '([\w.]+)'", done.stdout):
        raise ModuleNotFoundError(found[0], name=found[1])
    summary = (done.stdout.strip().splitlines() or [done.stderr[-300:]])[-1]
    bench.add("tests marked gpu", ok=done.returncode == 0, seconds=seconds, said=summary)


def tests_marked_gpu() -> list[str]:
    """Their files; others need packages that a bare machine lacks."""
    return [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests/unit").rglob("test_*.py"))
        if "\n@pytest.mark.gpu" in path.read_text(encoding="utf-8")
    ]


def doctor(bench: Bench) -> None:
    """With the settings of section "runs"."""
    _need_ray()
    done, seconds = _python("-m", "pipelines.cli", "doctor", "--json", *_settings(bench))
    answer = json.loads(done.stdout)
    lacks = [f"{c['name']}: {c['found']}" for c in answer["checks"] if c["status"] != "ok"]
    bench.add("doctor", ok=answer["can_start"], seconds=seconds, lacks="; ".join(lacks))


def runs(bench: Bench) -> None:
    """Each stage's seconds, by the run's journal; and of the last training, what it waited for."""
    _need_ray()
    from benchmarks.small_run import scratch_folder, settings_in

    with scratch_folder() as scratch:
        drawn = settings_in(Path(scratch), NUM_IDS[bench.is_quick], *_settings(bench))
        for images in IMAGES:
            if not bench.is_late(f"run images={images}"):
                _run(bench, drawn, Path(scratch) / images, images)


def _need_ray() -> None:
    importlib.import_module("ray")


def _settings(bench: Bench) -> list[str]:
    size = SMALL if bench.is_quick else LARGE
    return [*SETTINGS, *size, f"ray.use_gpu={str(bench.on_gpu).lower()}"]


def _run(bench: Bench, drawn: list[str], out: Path, images: str) -> None:
    settings = [*drawn, f"ray.images={images}", f"out={out}"]
    done, seconds = _python("-m", "pipelines.cli", "adapt", *settings)
    name = f"run images={images}"
    if done.returncode != 0:
        bench.add(name, ok=False, seconds=seconds, said=done.stderr[-500:])
        return
    stages = {line["stage"]: line for line in json_lines(out / "journal.jsonl")}
    events = json_lines(out / "metrics.jsonl")
    *_, last = (event for event in events if "images_per_s" in event)
    row: Row = {
        "images_per_s": last["images_per_s"],
        "input_share": last["input_share"],
        "on": stages["iteration-02/train"]["device"],
    }
    bench.add(name, ok=True, seconds=seconds, **row)
    for stage, line in stages.items():
        bench.add(f"  {images} {stage}", seconds=line["seconds"])


def _python(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """A program from the repository's root, and its seconds."""
    begun = time.monotonic()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    return done, time.monotonic() - begun
