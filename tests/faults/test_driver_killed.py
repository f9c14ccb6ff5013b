"""The driver or its cluster is gone: the same command continues, and does nothing twice."""

import signal
from pathlib import Path

import pytest
from heads import Head, processes_of, ray_folder, ray_head, without_ray
from runs import Run, run_of
from waiting import wait_until

from daal.config import Config

pytestmark = pytest.mark.ray

WEIGHTS = "iteration-01/checkpoint/weights.safetensors"
EVERY_STAGE = ["ingest/target", "pretrain/train", "pretrain/extract", "iteration-01/estimate",
               "iteration-01/train", "iteration-01/extract"]  # fmt: skip
# They try for a minute to tell a cluster that is gone, and do nothing else.
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def test_killed__the_bits_of_an_undisturbed_run(tiny_config: Config, tmp_path: Path) -> None:
    calm, struck = (run_of(tiny_config, f"{tmp_path}/{name}") for name in ("calm", "struck"))
    with ray_head() as head:
        calm.finish(head.joined)
        kill_in(struck, "iteration-01/estimate", head)
        struck.finish(head.joined)
    assert_the_same(struck, calm)


@pytest.mark.nightly
def test_killed_in_every_stage__and_the_cluster_lost__the_bits_of_an_undisturbed_run(
    two_workers: Config, tmp_path: Path
) -> None:
    calm, struck = (run_of(two_workers, f"{tmp_path}/{name}") for name in ("calm", "struck"))
    with ray_head() as second:
        with ray_head() as first:
            calm.finish(first.joined)
            for stage in EVERY_STAGE[:-1]:
                kill_in(struck, stage, first)
            process = struck.start(first.joined)
            struck.wait_for("iteration-01/train", process)
            first.kill()
            _, stderr = process.communicate()
            # A driver that talks to the store of its node as that goes is ended from within Ray.
            assert process.returncode in (1, 6), stderr
            assert process.returncode == 1 or "the same command continues" in stderr
            assert "Traceback" not in stderr
        kill_in(struck, EVERY_STAGE[-1], second)
        struck.finish(second.joined)
    assert_the_same(struck, calm)


def kill_in(run: Run, stage: str, head: Head) -> None:
    process = run.start(head.joined)
    run.wait_for(stage, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it had ended before"


def assert_the_same(struck: Run, calm: Run) -> None:
    assert struck.folder.read(WEIGHTS) == calm.folder.read(WEIGHTS)
    assert struck.stages() == calm.stages(), "a stage was done twice"


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.nightly),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_its_own_ray_ends_with_the_driver__and_the_run_can_go_on(
    end: signal.Signals, code: int, tiny_config: Config, tmp_path: Path
) -> None:
    run = run_of(tiny_config, f"{tmp_path}/run")
    with ray_folder() as folder:
        process = run.start(without_ray() | {"RAY_TMPDIR": folder, "HOME": folder})
        run.wait_for("pretrain/train", process)
        process.send_signal(end)
        _, stderr = process.communicate()
        assert process.returncode == code, stderr
        assert "Traceback" not in stderr
        if end != signal.SIGKILL:
            assert "the same command continues this run" in stderr
        wait_until(lambda: not processes_of(folder, AGENTS), "Ray outlives its driver")
    assert run.stages() == ["ingest/source", "ingest/target"]
