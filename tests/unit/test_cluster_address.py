"""RAY_ADDRESS, as shells, schedulers and clusters set it."""

import os

import pytest

from daal.errors import ClusterError
from pipelines.workers.cluster_address import cluster_address
from pipelines.workers.ray_environment import OWN_RAY, set_for_session


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
