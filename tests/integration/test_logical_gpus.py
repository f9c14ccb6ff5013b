"""Runs on nodes with several GPUs, as Ray counts them; nothing here computes on one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Ray counts no more GPUs than this variable shows.
SHOWN = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
ENVIRONMENT = SHOWN | {"RAY_AUTH_MODE": "disabled"}
pytestmark = pytest.mark.ray


def measure(*arguments: str) -> list[dict[str, Any]]:
    """Rows of the benchmark's last table; in a process of its own, for clusters of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.logical_gpus", "--json", *arguments],
        capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["rows"]
    return rows


@pytest.mark.parametrize(
    "layouts", [["4+2"], pytest.param(["8", "4+4", "8+1"], marks=pytest.mark.nightly)]
)
def test_workers_are_placed__one_on_each_gpu_of_every_node(layouts: list[str]) -> None:
    assert [row["workers on nodes"] for row in measure(*layouts)] == layouts


@pytest.mark.nightly  # unit/test_jobs_on_gpus.py has the jobs of the workers
@pytest.mark.parametrize("layout", ["1+1", "4+4", "8+1"])
def test_two_iterations__a_worker_on_each_gpu_does_all_and_no_process_is_started_later(
    layout: str,
) -> None:
    (row,) = measure("--run", layout)
    assert row["workers on nodes"] == layout and row["a GPU each"]
    assert row["same processes"], "the workers were restarted"
    assert not {"pseudo-labels", "evaluate"} & {*row["tasks"]}, "they are jobs of the workers"
    assert row["started later"] == 0
    assert 0 < row["mAP"] <= 1


def test_a_task_without_a_gpu_sees_none() -> None:
    program = (
        "import os, ray; from pipelines.workers.ray_environment import set_for_process; "
        "set_for_process(); "
        "ray.init(address='local', num_cpus=1, num_gpus=2, include_dashboard=False); "
        "seen = lambda: os.environ.get('CUDA_VISIBLE_DEVICES'); "
        "each = [ray.remote(num_cpus=0, num_gpus=number)(seen) for number in (0, 1)]; "
        "print([ray.get(task.remote()) for task in each])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT
    )
    assert done.stdout.splitlines()[-1:] == ["['', '0']"], done.stderr
