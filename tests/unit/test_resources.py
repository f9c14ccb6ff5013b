"""What a run takes of clusters that aren't here."""

import pytest
import ray
from ray.train import ScalingConfig

from daal.config import RayConfig
from daal.errors import ClusterError
from pipelines.tools.ablate import room_on_cluster
from pipelines.workers.elastic import EqualShares
from pipelines.workers.resources import Node, cluster_nodes, plan

GB = 10**9


def nodes(*given):
    """Of so many CPUs and GPUs, with an object store of as many GB as CPUs."""
    return [Node(cpus, gpus, cpus, cpus * GB) for cpus, gpus in given]


def planned(given, common_batch=0, **config):
    return plan(nodes(*given), RayConfig.model_validate(config), common_batch)


def cluster(monkeypatch, *given):
    """Ray says that it has these nodes; they are other machines."""
    alive = [
        {
            "Alive": True, "NodeManagerAddress": f"10.0.0.{number}",
            "Resources": {"CPU": cpus, "GPU": gpus, "object_store_memory": cpus * GB},
        }
        for number, (cpus, gpus) in enumerate(given)
    ]  # fmt: skip
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, {"Alive": False}])
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.1.0")


@pytest.mark.parametrize(
    ("given", "config", "on_gpu", "workers"),
    [
        ([(8, 0)], {}, False, (2, 2)),
        ([(8, 1)], {}, True, (1, 1)),  # rather one worker on a GPU than two on CPUs
        ([(64, 6)], {"num_workers": 8}, True, (4, 4)),  # batches of 8 workers suit 4, but not 6
        ([(64, 4)], {"num_workers": 6, "common_batch": 48}, True, (4, 4)),
        ([(64, 3)], {"num_workers": 4, "min_workers": 2}, True, (2, 4)),
        ([(64, 1)], {"num_workers": 4, "min_workers": 2}, True, (1, 1)),
        ([(64, 8)], {}, True, (2, 2)),
        ([(8, 1)], {"use_gpu": False}, False, (2, 2)),
        ([(64, 0), (2, 8)], {"num_workers": 8}, True, (2, 2)),  # GPUs without a CPU for each
    ],
)
def test_workers_take_gpus_where_there_are_any(given, config, on_gpu, workers):
    found = planned(given, **config)
    assert (found.use_gpu, (found.least_workers, found.most_workers)) == (on_gpu, workers)


@pytest.mark.parametrize(
    ("given", "config", "threads", "per_task", "store"),
    [
        ([(12, 0)], {"num_workers": 4}, 3, 12, 12),
        # A head without GPUs gets no worker, whatever it has.
        ([(64, 0), (64, 8)], {"num_workers": 8}, 8, 64, 64),
        ([(2, 0), (64, 8)], {"num_workers": 8}, 8, 64, 64),
        ([(128, 0), (16, 4), (8, 4)], {"num_workers": 8}, 2, 8, 8),
        ([(4, 0), (64, 0)], {"num_workers": 8}, 8, 64, 64),
        ([(4, 0), (4, 0)], {"num_workers": 6}, 1, 4, 4),
    ],
)
def test_threads_and_object_store__of_the_nodes_that_get_workers(
    given, config, threads, per_task, store
):
    for order in (given, given[::-1]):
        found = planned(order, **config)
        assert (found.threads, found.threads_per_task) == (threads, per_task)
        assert found.node_store_bytes == store * GB


@pytest.mark.parametrize(
    ("given", "use_gpu", "common_batch", "workers"),
    [
        ([(4, 0)] * 7, False, 64, 4),  # 7, 6 and 5 workers don't divide 64
        ([(4, 0)] * 7, False, 840, 7),
        ([(4, 0)] * 1, False, 64, 0),  # no CPUs left to read images
        ([(8, 3), (8, 4)], True, 64, 4),
    ],
)
def test_an_elastic_group__is_of_a_size_that_divides_the_batches(
    given, use_gpu, common_batch, workers, monkeypatch
):
    config = {"min_workers": 1, "num_workers": 8, "cpus_per_worker": 1 if use_gpu else 3}
    if workers:
        assert planned(given, common_batch, **config).num_workers == workers
    cluster(monkeypatch, *given)
    each = {"CPU": 1.0, "GPU": 1.0} if use_gpu else {"CPU": 3.0}
    scaling = ScalingConfig(num_workers=(1, 8), use_gpu=use_gpu, resources_per_worker=each)
    reserved = {
        str(number): {name: sum([amount] * (gpus or 1)) for name, amount in each.items()}
        for number, (_, gpus) in enumerate(given)
    }  # as many bundles as the node has GPUs, or one of its CPUs
    policy = EqualShares(scaling, RayConfig.model_validate(config), common_batch)
    assert policy._count_possible_workers(reserved) == workers


@pytest.mark.parametrize(
    ("given", "config", "says"),
    [
        ([(4, 0)], {"num_workers": 8}, "has 4 CPUs, but the run needs 10: ray.num_workers=8"),
        ([(4, 0)], {"num_workers": 8, "min_workers": 3}, "needs 5: ray.min_workers=3 x"),
        ([(4, 0)] * 4, {"cpus_per_worker": 6}, "room for 0 workers of ray.cpus_per_worker=6 CPUs"),
        ([(8, 1)], {"use_gpu": True}, "room for 1 workers of ray.cpus_per_worker=1 CPUs and a GPU"),
        ([(64, 0), (2, 8)], {"use_gpu": True, "num_workers": 8}, "8 GPUs has room for 2 workers"),
    ],
)
def test_what_does_not_fit__is_refused_with_the_numbers(given, config, says):
    with pytest.raises(ClusterError) as refused:
        planned(given, **config)
    assert says in str(refused.value)


def test_cores_of_this_machine__as_many_as_this_process_may_use(monkeypatch):
    cluster(monkeypatch, (64, 0), (12, 1))
    monkeypatch.setattr("pipelines.workers.resources.available_cpus", lambda: 4)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.0")
    assert [node.cores for node in cluster_nodes()] == [4, 12]


@pytest.mark.parametrize(
    ("given", "config", "number", "threads"),
    [
        ([(4, 0)], {}, 1, None),  # alone: a worker takes its share of the node
        ([(8, 0)], {}, 2, 2),  # 2 workers and 2 readers of 1 CPU each: 4 CPUs a run
        ([(32, 0)], {"cpus_per_worker": 4}, 3, 5),
        ([(64, 6)], {}, 3, 10),  # GPUs are scarcer than CPUs
        ([(64, 1)], {}, 1, None),
        ([(64, 0), (64, 8)], {}, 4, 8),  # no worker on the head
    ],
)
def test_runs_side_by_side_share_the_cores(given, config, number, threads, monkeypatch):
    cluster(monkeypatch, *given)
    assert room_on_cluster(RayConfig.model_validate(config)) == (number, threads)
