"""What a session finds around it: the cluster's address, variables, the token's place, CPUs."""

import os
from pathlib import Path

import joblib
import pytest
from programs import python

from daal.available_cpus import available_cpus
from daal.config import RayConfig
from daal.errors import ClusterError
from pipelines.workers import session
from pipelines.workers.cluster_address import cluster_address
from pipelines.workers.ray_environment import ALWAYS, OWN_RAY, set_for_session, worker_variables


@pytest.mark.parametrize(
    "given, address",
    [("", None), ("local", None), (" ", None), ("auto", "auto"), ("10.0.0.1:6379", "10.0.0.1:6379"),
     ("[fe80::1]:6379", "[fe80::1]:6379"), (" head:6379\n", "head:6379")],
)  # fmt: skip
def test_addresses(given, address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", given)
    assert cluster_address() == address
    # A Ray of one's own is started with its own variables, and no other is.
    for name in OWN_RAY:
        monkeypatch.delenv(name, raising=False)
    with set_for_session():
        assert ("RAY_worker_niceness" in os.environ) == (address is None)


@pytest.mark.parametrize(
    "given, why",
    [("ray://head:10001", r"no address that a run can join.*RAY_ADDRESS=auto.*daal submit"),
     ("localhost", r"has no port; give HOST:PORT.*localhost:6379"),
     ("10.0.0.1:", r"has no port.*10\.0\.0\.1:6379")],
)  # fmt: skip
def test_addresses_that_a_run_can_t_join_by(given, why, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", given)
    with pytest.raises(ClusterError, match=why):
        cluster_address()


ROOT = Path(__file__).parents[2]


def test_importing_pipelines_sets_no_variable():
    code = (
        "import os, pipelines.report.page, pipelines.workers.session, pipelines.adapt\n"
        "from pipelines.workers.ray_environment import ALWAYS, OWN_RAY\n"
        "print({*ALWAYS, *OWN_RAY} & {*os.environ})"
    )
    kept = {name: value for name, value in os.environ.items() if name not in {*ALWAYS, *OWN_RAY}}
    done = python("-c", code, cwd=ROOT, env=kept)
    assert done.stdout == "set()\n", done.stderr


def test_a_relative_place_of_the_token__is_of_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "secrets/token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    given = []
    monkeypatch.setattr(
        session.ray, "init", lambda **_: given.append(os.environ["RAY_AUTH_TOKEN_PATH"])
    )
    session._start_or_join(None, RayConfig(), verbose=True)
    assert given == [str(tmp_path / "secrets/token")] and Path(given[0]).is_file()


def test_variables_of_workers__as_the_user_has_set_them(monkeypatch):
    for name in worker_variables(deterministic=True):
        monkeypatch.delenv(name, raising=False)
    assert worker_variables(deterministic=False)["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE_BF16"
    assert "NCCL_ALGO" not in worker_variables(deterministic=False)
    assert worker_variables(deterministic=True)["NCCL_ALGO"] == "Ring"
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    assert worker_variables(deterministic=True)["NCCL_ALGO"] == "Tree"


def test_cpus__those_of_the_affinity_and_of_slurm(monkeypatch):
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    before = os.sched_getaffinity(0)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)  # what a big shared node has
    assert available_cpus() <= len(before)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 128)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    assert available_cpus() == 4
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4(x2)")
    assert available_cpus() == 128
