"""The driver or its cluster is gone: the same command continues, and does nothing twice."""

import signal

import pytest
from heads import processes_of, ray_folder, ray_head, without_ray
from runs import Run, run_of
from waiting import wait_until

from pipelines.run.folder import RunFolder

pytestmark = pytest.mark.ray

WEIGHTS = "iteration-01/checkpoint/weights.safetensors"
EVERY_STAGE = ["ingest/target", "pretrain/train", "pretrain/extract", "iteration-01/estimate",
               "iteration-01/train", "iteration-01/extract"]  # fmt: skip
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
# They try for a minute to tell a cluster that is gone, and do nothing else.
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


@pytest.mark.parametrize(
    "ends",
    [
        {"pretrain/train": signal.SIGKILL, "iteration-01/estimate": signal.SIGINT},
        pytest.param({"pretrain/train": signal.SIGTERM}, marks=pytest.mark.nightly),
    ],
)
def test_ended__its_own_ray_ends_with_it__the_bits_of_an_undisturbed_run(ends, adapted, tmp_path):
    run = run_of(adapted.config, f"{tmp_path}/run")
    with ray_folder() as folder:
        environment = without_ray() | {"RAY_TMPDIR": folder, "HOME": folder}
        for stage, end in ends.items():
            stderr = end_in(run, stage, environment, end)
            assert "Traceback" not in stderr
            if end != signal.SIGKILL:
                assert "the same command continues this run" in stderr
            wait_until(lambda: not processes_of(folder, AGENTS), "Ray outlives its driver")
        run.finish(environment)
    assert_the_same(run, adapted)


@pytest.mark.nightly
def test_killed_in_every_stage__and_the_cluster_lost__the_bits_of_an_undisturbed_run(
    adapted, tmp_path
):
    run = run_of(adapted.config, f"{tmp_path}/run")
    with ray_head() as second:
        with ray_head() as first:
            for stage in EVERY_STAGE[:-1]:
                end_in(run, stage, first.joined)
            lose_the_cluster(run, first)
        end_in(run, EVERY_STAGE[-1], second.joined)
        run.finish(second.joined)
    assert_the_same(run, adapted)


def end_in(run, stage, environment, end=signal.SIGKILL):
    """What the command said on standard error, ended in this stage."""
    process = run.start(environment)
    run.wait_for(stage, process)
    process.send_signal(end)
    _, stderr = process.communicate()
    assert process.returncode == CODES[end], stderr
    return stderr


def lose_the_cluster(run, head):
    process = run.start(head.joined)
    run.wait_for("iteration-01/train", process)
    head.kill()
    _, stderr = process.communicate()
    # A driver that talks to the store of its node as that goes is ended from within Ray.
    assert process.returncode in (1, 6), stderr
    assert process.returncode == 1 or "the same command continues" in stderr
    assert "Traceback" not in stderr


def assert_the_same(killed, adapted):
    undisturbed = Run(killed.recipe, RunFolder(adapted.config.out))
    assert killed.folder.read(WEIGHTS) == undisturbed.folder.read(WEIGHTS)
    assert killed.stages() == undisturbed.stages(), "a stage was done twice"
