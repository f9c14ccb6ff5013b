"""One Ray for the whole test run, and a tiny drawn world."""

import io
import os
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace

import hypothesis
import pytest
from heads import PATIENCE
from tiny_run import FinishedRun, tiny

from benchmarks.s3_server import program, s3_server
from pipelines.workers.ray_environment import set_for_process

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
set_for_process()
os.environ.update(PATIENCE)

# An example that takes long says something of the machine only.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


def pytest_configure(config):
    """Hide the machine's GPUs, but for `pytest -m gpu`: a run takes all that it finds.

    Tests that want some pretend them, in the environment `LOGICAL_GPUS` of tests/heads.py.
    """
    if not config.option.markexpr.startswith("gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marked by what they use, so that `make test` can run them beside the others."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")


@pytest.fixture(scope="session")
def ray_cluster():
    """Four logical CPUs and no GPU, whatever the machine has."""
    import logging

    import ray

    from pipelines.workers.own_ray import start_own_ray

    start_own_ray(4, num_gpus=0, logging_level=logging.ERROR, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory):
    """Two drawn domains of 12 training and 6 test identities, 64x32 pixels."""
    from daal.drawn.domains import draw_domains

    out = tmp_path_factory.mktemp("world")
    draw_domains(out, seed=0, num_train_ids=12, num_test_ids=6, images_per_camera=3, size=(64, 32))
    return out


@pytest.fixture
def tiny_config(tiny_world, tmp_path):
    """A run of seconds with one worker."""
    return tiny(tiny_world, tmp_path / "run")


@pytest.fixture
def two_workers(tiny_world, tmp_path):
    """A run of seconds with two."""
    return tiny(tiny_world, tmp_path / "run", "ray.num_workers=2")


@pytest.fixture
def s3():
    """A server of our own with an empty bucket, and the way there in the environment."""
    if program() is None:
        pytest.skip("moto_server is not installed (pip install -r tests/faults/s3_server.txt)")
    with s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def adapted(ray_cluster, tiny_world, tmp_path_factory):
    """`daal adapt --json` on the tiny world, with two workers and a supervised bound."""
    from pipelines.commands.run import run_adaptation

    folder = tmp_path_factory.mktemp("adapted")
    config = tiny(tiny_world, folder / "run", "ray.num_workers=2", "supervised_bound=true")
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        run_adaptation(config, as_json=True)
    return FinishedRun(config, stdout.getvalue(), stderr.getvalue())


@pytest.fixture
def finished_run(adapted, tmp_path):
    """That run in a folder of this test's own."""
    out = shutil.copytree(adapted.out, tmp_path / "run")
    return replace(adapted, config=adapted.config.model_copy(update={"out": str(out)}))
