"""How long a run waits for nodes, and for which, on clusters that aren't here."""

from types import SimpleNamespace

import pytest

from daal.config import RayConfig
from daal.errors import ClusterError
from pipelines.workers import wait_for_nodes as module
from pipelines.workers.resources import Node
from pipelines.workers.wait_for_nodes import AutoscalerReport, place_in_time

HEAD, GPU_NODE = Node(8, 0, 8, 10**9), Node(16, 1, 16, 10**9)


class Cluster:
    """A head, and an autoscaler (None: none) that starts nodes some seconds after being asked.

    It says nothing in its first `silent` seconds, and starts what it has of what is asked for.
    """

    def __init__(self, has, starts, seconds, silent=0.0):
        self.has, self.starts, self.seconds, self.silent = has, starts, seconds, silent
        self.now, self.asked_at, self.started = 0.0, float("inf"), 0
        self.asked = []  # workers with GPUs

    def nodes(self):
        there = self.now - self.asked_at >= self.seconds
        return [HEAD] + [GPU_NODE] * (self.has + self.started * there)

    def ask(self, bundles):
        gpus = sum("GPU" in bundle for bundle in bundles)
        self.asked.append(gpus)
        if gpus > self.has and self.starts:
            self.started, self.asked_at = min(self.starts, gpus - self.has), self.now

    def report(self):
        types = ["node_1f3"] if self.starts is None else ["head"]
        coming = 5 < self.now - self.asked_at < self.seconds
        return AutoscalerReport(types if self.now >= self.silent else [], coming)


@pytest.fixture
def made(monkeypatch):
    """The cluster that is put in here is joined."""
    some = []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(module, "cluster_nodes", lambda: some[0].nodes())
    monkeypatch.setattr("pipelines.workers.resources.cluster_nodes", lambda: some[0].nodes())
    monkeypatch.setattr(module, "autoscaler_report", lambda: some[0].report())
    monkeypatch.setattr(module, "request_resources", lambda bundles: some[0].ask(bundles))

    def sleep(seconds):
        some[0].now += seconds

    clock = SimpleNamespace(monotonic=lambda: some[0].now, sleep=sleep)
    monkeypatch.setattr(module, "time", clock)
    yield some


@pytest.mark.parametrize(
    ("cluster", "config", "workers", "on_gpu", "asked", "waited"),
    [
        (Cluster(0, 4, 200), {"num_workers": 4}, 4, True, [4], 200),
        (Cluster(0, 4, 200), {"num_workers": 4, "min_workers": 1}, 4, True, [4], 200),
        (Cluster(0, None, 0), {}, 2, False, [], 0),  # no autoscaler
        (Cluster(2, None, 0), {}, 2, True, [], 0),
        (Cluster(2, 4, 200), {}, 2, True, [], 0),  # enough are there
        (Cluster(1, 1, 60), {}, 2, True, [2], 60),
        (Cluster(0, 4, 900), {}, 2, False, [2], 600),  # later than ray.wait_minutes
        (Cluster(0, 4, 200), {"wait_minutes": 0}, 2, False, [], 0),
        (Cluster(0, 4, 200), {"use_gpu": False}, 2, False, [], 0),
        (Cluster(0, 2, 200), {"num_workers": 4}, 2, True, [4], 220),  # no more are coming
        (Cluster(0, 0, 200), {"num_workers": 4}, 4, False, [4], 20),
        # A young cluster's autoscaler is heard before it is judged.
        (Cluster(0, None, 30, silent=5), {}, 2, False, [], 5),
        (Cluster(0, None, 30, silent=99), {}, 2, False, [], 20),
        (Cluster(0, 2, 30, silent=5), {}, 2, True, [2], 35),
    ],
)
def test_auto__waits_for_gpus_where_nodes_with_some_are_started(
    cluster, config, workers, on_gpu, asked, waited, made, capsys
):
    made.append(cluster)
    given = RayConfig.model_validate({"cpus_per_worker": 0.5, **config})
    found = place_in_time(given, 64)
    assert (found.num_workers, found.use_gpu) == (workers, on_gpu)
    assert waited <= cluster.now <= waited + 4
    said = " ".join(capsys.readouterr().err.split())
    assert cluster.asked == ([*asked, 0] if asked else []), "0: what it has asked for is let go"
    assert (f"waiting for GPUs for {given.num_workers} workers" in said) == bool(asked)
    assert ("so the run takes CPUs" in said) == (bool(asked) and not on_gpu)


def test_too_few_cpus__are_asked_for_until_the_time_is_over(made, capsys):
    made.append(Cluster(0, None, 0))
    with pytest.raises(ClusterError, match="has 8 CPUs, but the run needs 34"):
        place_in_time(RayConfig(num_workers=32, wait_minutes=1))
    assert 60 <= made[0].now <= 61
    assert made[0].asked == [0, 0], "asked for GPUs"
    assert "Waiting for nodes for up to 1 minutes" in " ".join(capsys.readouterr().err.split())
