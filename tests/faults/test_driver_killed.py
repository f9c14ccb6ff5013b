"""The driver or its cluster is gone: the same command goes on, and does nothing twice."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from heads import ray_head, wait_until_gone

from daal.config import Config

pytestmark = pytest.mark.ray

WEIGHTS = "iteration-01/checkpoint/weights.safetensors"
STAGES = ["ingest/target", "pretrain/train", "pretrain/extract", "iteration-01/estimate",
          "iteration-01/train", "iteration-01/extract"]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A recipe on disk, and the command that runs it."""

    recipe: Path
    out: Path

    def start(self, environment: dict[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", "adapt", str(self.recipe)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def finish(self, environment: dict[str, str]) -> str:
        process = self.start(environment)
        stdout, stderr = process.communicate(timeout=400)
        assert process.returncode == 0, stdout + stderr
        return stderr

    def wait_for(self, stage: str, process: subprocess.Popen[str], key: str = "state") -> None:
        """Until the metrics have a line of the stage with `key` that isn't there yet."""
        before = self._count(stage, key)
        for _ in range(4 * 300):
            if self._count(stage, key) > before:
                return
            assert process.poll() is None, process.communicate()
            time.sleep(0.25)
        pytest.fail(f"{stage} was not reached")

    def _count(self, stage: str, key: str) -> int:
        metrics = self.out / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return sum(f'"stage": "{stage}"' in line and f'"{key}"' in line for line in lines)

    def journal(self) -> list[str]:
        lines = (self.out / "journal.jsonl").read_text().splitlines()
        return [json.loads(line)["stage"] for line in lines]


def run_in(folder: Path, config: Config) -> Run:
    run = Run(folder.with_suffix(".yaml"), folder)
    settings = config.model_copy(update={"out": str(folder)}).model_dump(mode="json")
    run.recipe.write_text(yaml.safe_dump(settings))
    return run


@pytest.mark.timeout(900)
def test_killed_in_every_stage__and_the_cluster_lost__the_bits_of_an_undisturbed_run(
    tiny_config: Config, tmp_path: Path
) -> None:
    calm, struck = (run_in(tmp_path / name, tiny_config) for name in ("calm", "struck"))
    with ray_head() as second:
        with ray_head() as first:
            calm.finish(first.joined)
            for stage in STAGES:
                process = struck.start(first.joined)
                struck.wait_for(stage, process)
                process.kill()
                process.communicate()
            process = struck.start(first.joined)
            struck.wait_for("iteration-01/extract", process)
            first.kill()
            _, stderr = process.communicate(timeout=240)
            assert process.returncode == 6, stderr
            assert "the same command continues" in stderr and "Traceback" not in stderr
        struck.finish(second.joined)
    assert (struck.out / WEIGHTS).read_bytes() == (calm.out / WEIGHTS).read_bytes()
    assert struck.journal() == calm.journal(), "a stage was done twice"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("end", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_its_own_ray_ends_with_the_driver(
    end: signal.Signals, code: int, tiny_config: Config, tmp_path: Path
) -> None:
    run = run_in(tmp_path / "run", tiny_config)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        # Sockets have short paths, and Ray's are deep.
        process = run.start(kept | {"RAY_TMPDIR": folder, "HOME": folder})
        run.wait_for("pretrain/train", process)
        process.send_signal(end)
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == code, stderr
        assert "Traceback" not in stderr
        if end == signal.SIGTERM:
            assert "the same command continues" in stderr
        assert not wait_until_gone(folder), "Ray outlived its driver"
    assert run.journal() == ["ingest/source", "ingest/target"]
