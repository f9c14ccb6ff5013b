"""A run over several nodes, pretended on this machine: spread, the same result, losses survived."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.ray


def measure(*arguments: str) -> dict[str, dict[str, Any]]:
    """Rows of the benchmark by name; in a process of its own, for a cluster of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.nodes", "--json", *arguments],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"RAY_AUTH_MODE": "disabled"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return {row["name"]: row for row in json.loads(done.stdout.splitlines()[-1])["rows"]}


def check_spread(row: dict[str, Any], number: int) -> None:
    assert row["first_read"] == [1.0] * number, "something came twice to a node, or not at all"
    assert row["second_read"] == [0.0] * number, "what a node has was sent again"
    assert row["nodes_of_tasks"]["RayTrainWorker.run_train_fn"] == number


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_one_to_four_nodes_give_the_same_bits__and_elastic_runs_go_on_alone() -> None:
    rows = measure("--nodes", "1", "2", "4", "--lost", "--elastic")
    for number in (1, 2, 4):
        check_spread(rows[f"{number} nodes"], number)
    same = [rows[name]["weights"] for name in ("1 nodes", "2 nodes", "4 nodes", "lost")]
    assert len(set(same)) == 1
    assert rows["elastic"]["groups"] == [2, 1, 2]


@pytest.mark.nightly
def test_hosts_joined_by_a_network__the_same_bits_as_nodes_of_one_machine() -> None:
    if os.geteuid() != 0 or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("network namespaces can't be made here (they need root)")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.hosts", "--json"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    (row,) = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert row["weights"] == measure("--nodes", "2", "--workers", "2")["2 nodes"]["weights"]
    ratios = row["step_over_paper"]
    assert 0.9 < sum(ratios) / len(ratios) < 1.1
