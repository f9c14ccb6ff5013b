"""What a run takes of clusters that aren't here."""

import os

import pytest
import ray

from daal.config import RayConfig
from pipelines.ablate import room_on_cluster
from pipelines.resources import place


def cluster(monkeypatch: pytest.MonkeyPatch, *nodes: tuple[int, int]) -> None:
    """Nodes of so many CPUs and GPUs."""
    alive = [
        {"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus, "object_store_memory": 1e9}}
        for cpus, gpus in nodes
    ]
    total = {"CPU": sum(cpus for cpus, _ in nodes), "GPU": sum(gpus for _, gpus in nodes)}
    monkeypatch.setattr(ray, "nodes", lambda: alive)
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


@pytest.mark.parametrize(
    ("nodes", "config", "on_gpu", "workers"),
    [
        ([(8, 0)], {}, False, (2, 2)),
        ([(8, 1)], {}, True, (1, 1)),  # rather one worker on a GPU than two on CPUs
        ([(64, 6)], {"num_workers": 8}, True, (4, 4)),  # batches of 8 workers suit 4, but not 6
        ([(64, 3)], {"num_workers": 4, "min_workers": 2}, True, (2, 4)),
        ([(64, 1)], {"num_workers": 4, "min_workers": 2}, True, (1, 1)),
        ([(64, 8)], {}, True, (2, 2)),
        ([(8, 1)], {"use_gpu": False}, False, (2, 2)),
        ([(8, 0), (64, 8)], {"num_workers": 8}, True, (8, 8)),
    ],
)
def test_workers_take_gpus_where_there_are_any(
    nodes: list[tuple[int, int]],
    config: dict[str, int],
    on_gpu: bool,
    workers: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster(monkeypatch, *nodes)
    found = place(RayConfig.model_validate(config))
    assert (found.use_gpu, (found.least_workers, found.most_workers)) == (on_gpu, workers)


def test_threads__are_those_of_the_largest_node_and_not_of_its_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster(monkeypatch, (12, 0))
    found = place(RayConfig(num_workers=4))
    assert (found.threads, found.threads_per_task) == (3, 12)
    found = place(RayConfig(num_workers=4, threads_per_worker=2))
    assert (found.threads, found.threads_per_task) == (2, 8)


@pytest.mark.parametrize(
    ("nodes", "config", "room", "threads"),
    [
        ([(4, 0)], {}, 1, None),  # alone: a worker takes its share of the node
        ([(8, 0)], {}, 2, 2),  # 2 workers and a reader of 1 CPU each: 3 CPUs a run
        ([(32, 0)], {"cpus_per_worker": 4}, 3, 5),
        ([(32, 0)], {"cpus_per_worker": 4, "threads_per_worker": 4}, 3, 4),
        ([(64, 6)], {}, 3, 10),  # GPUs are scarcer than CPUs
        ([(64, 1)], {}, 1, None),
    ],
)
def test_runs_side_by_side_share_the_cores(
    nodes: list[tuple[int, int]],
    config: dict[str, int],
    room: int,
    threads: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster(monkeypatch, *nodes)
    assert room_on_cluster(RayConfig.model_validate(config)) == (room, threads)


def test_gpus_that_no_worker_takes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, (64, 8))
    assert "this cluster has 8 GPUs" in str(place(RayConfig()))
    assert "this cluster" not in str(place(RayConfig(num_workers=8)))
