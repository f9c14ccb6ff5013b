"""Runs over several nodes and GPUs, pretended on this machine; nothing here computes on a GPU."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from programs import python

from benchmarks.s3_server import program

ROOT = Path(__file__).parents[2]
SEEN = """
import os, ray
from pipelines.workers.ray_environment import set_for_process
set_for_process()
ray.init(address="local", num_cpus=1, num_gpus=2, include_dashboard=False)
seen = lambda: os.environ.get("CUDA_VISIBLE_DEVICES")
print([ray.get(ray.remote(num_cpus=0, num_gpus=n)(seen).remote()) for n in (0, 1)])
"""
pytestmark = pytest.mark.ray


def last_line(*arguments, gpus):
    """The last line that Python prints, in a process of its own, for clusters of its own."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    if gpus:  # Ray counts no more of them than this variable shows
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = python(*arguments, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


def measure(benchmark, *arguments):
    """Rows of the benchmark's last table."""
    module = f"benchmarks.{benchmark}"
    line = last_line("-m", module, "--json", *arguments, gpus=benchmark == "logical_gpus")
    return json.loads(line)["rows"]


@pytest.mark.parametrize(
    "layouts", [["4+2"], pytest.param(["8", "4+4", "8+1"], marks=pytest.mark.nightly)]
)
def test_workers_are_placed__one_on_each_gpu_of_every_node(layouts):
    assert [row["workers on nodes"] for row in measure("logical_gpus", *layouts)] == layouts


@pytest.mark.nightly  # unit/test_jobs_on_gpus.py has the jobs of the workers
@pytest.mark.parametrize("layout", ["1+1", "4+4", "8+1"])
def test_two_iterations__a_worker_on_each_gpu_does_all_and_no_process_is_started_later(layout):
    (row,) = measure("logical_gpus", "--run", layout)
    assert row["workers on nodes"] == layout and row["a GPU each"]
    assert row["same processes"], "the workers were restarted"
    assert not {"pseudo-labels", "evaluate"} & {*row["tasks"]}, "they are jobs of the workers"
    assert row["started later"] == 0
    assert 0 < row["mAP"] <= 1


def test_a_task_without_a_gpu_sees_none():
    assert last_line("-c", SEEN, gpus=True) == "['', '0']"


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_one_to_four_nodes_and_a_bucket__everything_comes_once_and_the_same_bits() -> None:
    if program() is None:
        pytest.skip("moto_server is not installed (pip install -r tests/faults/s3_server.txt)")
    rows = {row["name"]: row for row in measure(
        "nodes", "--nodes", "1", "2", "4", "--s3", "--lost", "--elastic"
    )}  # fmt: skip
    for number in (1, 2, 4):
        row = rows[f"{number} nodes"]
        assert row["first_read"] == [1.0] * number, "something came twice to a node, or not at all"
        assert row["second_read"] == [0.0] * number, "what a node has was sent again"
        assert row["image_gets"] == row["shard_gets"] == 1, "something was fetched twice"
        assert row["nodes_of_tasks"]["RayTrainWorker.run_train_fn"] == number
    same = [rows[name]["weights"] for name in ("1 nodes", "2 nodes", "4 nodes", "lost")]
    assert len(set(same)) == 1
    assert rows["lost while reading"]["node_lost"] and rows["lost while reading"]["same_images"]
    assert rows["elastic"]["groups"] == [2, 1, 2]


@pytest.mark.nightly
def test_hosts_joined_by_a_network__the_same_bits_as_nodes_of_one_machine():
    if os.geteuid() != 0 or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("network namespaces can't be made here (they need root)")
    (row,) = measure("hosts")
    (of_one_machine,) = measure("nodes", "--nodes", "2", "--workers", "2")
    assert row["weights"] == of_one_machine["weights"]
    ratios = row["step_over_paper"]
    assert 0.9 < sum(ratios) / len(ratios) < 1.1
