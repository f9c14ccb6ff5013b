"""A node is announced to go, as spot machines are: the training is saved before it does."""

import json
import subprocess
import sys

import pytest
from heads import RAY, another_node, ray_head
from runs import run_of
from tiny_run import changed
from waiting import wait_until

from pipelines.workers.planned_faults import FAULTS

pytestmark = [pytest.mark.ray, pytest.mark.nightly]

WEIGHTS = "pretrain/checkpoint/weights.safetensors"


def test_saved_at_the_end_of_the_epoch__and_continued_on_another_node(two_workers, tmp_path):
    config = changed(
        two_workers, "pretrain.epochs=25", "pretrain.steps_per_epoch=8",
        "checkpoint_every_epochs=1000",
    )  # fmt: skip
    undisturbed, interrupted = (
        run_of(config, f"{tmp_path}/{name}") for name in ("undisturbed", "interrupted")
    )
    with ray_head(num_cpus=1) as head, another_node(head):
        node = the_other_node(head)
        undisturbed.finish(head.joined, "pretrain")
        late = json.dumps([{"stage": "pretrain", "step": 150, "rank": 1}])
        process = interrupted.start(head.joined | {FAULTS: late}, "pretrain")
        wait_for_training(interrupted)
        with another_node(head):
            announce_the_end_of(node, head)
            stdout, stderr = process.communicate()
            assert process.returncode == 0, stdout + stderr
    assert "a node is about to be taken away" in stderr
    assert interrupted.folder.read(WEIGHTS) == undisturbed.folder.read(WEIGHTS)
    lines = interrupted.folder.lines("metrics.jsonl")
    assert any(line.get("first_step", 0) > 0 for line in lines), "nothing was saved"


def wait_for_training(run):
    def has_begun():
        return any("loss" in line for line in run.folder.lines("metrics.jsonl"))

    wait_until(has_begun, "no training begins")


def the_other_node(head):
    """The one that is not the head's, once it has joined."""
    code = (
        "import ray, time; ray.init()\n"
        "while len(ray.nodes()) < 2: time.sleep(0.5)\n"
        "here = ray.get_runtime_context().get_node_id()\n"
        "print(next(node['NodeID'] for node in ray.nodes() if node['NodeID'] != here))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=head.joined, capture_output=True, text=True, check=True
    )
    return done.stdout.split()[-1]


def announce_the_end_of(node, head):
    """It is to be reclaimed in two hours, which is later than any end of this test."""
    subprocess.run(
        [
            RAY, "drain-node", f"--address={head.address}", f"--node-id={node}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
            "--deadline-remaining-seconds=7200",
        ],
        env=head.environment, check=True, capture_output=True,
    )  # fmt: skip
