"""The command with a Ray of its own, and with clusters that are too small or not there.

Runs that join a cluster: test_jobs.py.
"""

import stat

import pytest
from heads import free_port, without_ray
from programs import python
from tiny_run import recipe_of

from daal.config import RayConfig
from daal.errors import ClusterError
from pipelines.workers.session import ray_session

pytestmark = pytest.mark.ray

BUSY = """
import itertools, time
from types import SimpleNamespace
import psutil
import ray._private.node, ray._private.services
from daal.errors import ClusterError
from pipelines.workers import own_ray

started = []
def never_there(*_):
    started.append(psutil.Process().children())
    raise RuntimeError("no such node yet")

# Ray's thirty seconds are over at the second look.
now = itertools.count(step=20)
clock = SimpleNamespace(monotonic=lambda: next(now), sleep=time.sleep, time=time.time)
ray._private.node.time, ray._private.services.get_node = clock, never_there
own_ray.TRIES = 1
try:
    own_ray.start_own_ray(1, log_to_driver=False)
except ClusterError as error:
    print(error)
left = [child for child in psutil.Process().children() if child.status() != "zombie"]
print(f"started: {any(started)}, left: {left}")
"""


def daal(*arguments, cwd=None, **environment):
    return python("-P", "-m", "daal", *arguments, cwd=cwd, env=without_ray() | environment)


@pytest.fixture
def recipe(tiny_config, tmp_path):
    return recipe_of(tiny_config, tmp_path / "tiny.yaml")


def test_a_local_ray_asks_for_a_token__beside_modules_named_like_ours(recipe, tmp_path):
    # A folder of the user's own, whose modules are named like ours.
    project = tmp_path / "project"
    (project / "pipelines").mkdir(parents=True)
    (project / "pipelines/__init__.py").touch()
    (project / "cluster.py").write_text("def kmeans(x): return x\n")

    local = daal("pretrain", recipe, HOME=str(tmp_path), cwd=project)
    assert local.returncode == 0, local.stderr
    assert "Scores on the target's test images" in local.stdout
    assert "1 worker on CPUs" in local.stderr
    assert "ray_train" not in local.stderr  # nothing of Ray's own talk
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) & 0o077 == 0
    assert token.read_text().strip() not in local.stdout + local.stderr


def test_a_cluster_that_does_not_grow__is_given_up(ray_cluster, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # as if it were joined
    with pytest.raises(ClusterError, match="has 4 CPUs, but the run needs 9"):
        with ray_session(RayConfig(num_workers=8, data_cpus=1, wait_minutes=0.02)):
            pass
    assert "for up to 0.02 minutes (ray.wait_minutes)" in capsys.readouterr().err


def test_no_cluster_at_the_address__exit_6(recipe):
    result = daal(
        "pretrain", recipe, RAY_ADDRESS=f"127.0.0.1:{free_port()}", RAY_AUTH_MODE="disabled",
    )  # fmt: skip
    assert result.returncode == 6, result.stderr
    assert "can't be used" in result.stderr and "Traceback" not in result.stderr


def test_a_machine_too_busy_for_ray_to_start__is_said__and_nothing_is_left_running():
    environment = without_ray() | {"RAY_AUTH_MODE": "disabled"}
    done = python("-c", BUSY, env=environment)
    said, processes = done.stdout.splitlines()
    assert "didn't start in time (1 tries): this machine is too busy" in said, done.stderr
    assert processes == "started: True, left: []", done.stderr
