"""Several nodes of a Ray cluster on this machine, by Ray's own test cluster."""

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.cluster_utils import Cluster


@contextmanager
def ray_nodes(
    kinds: Sequence[dict[str, Any]], store_bytes: int, dashboard: bool = True
) -> Iterator[tuple[Cluster, list[str]]]:
    """A joined cluster with a node of each kind (num_cpus, num_gpus), and the nodes' ids.

    Its head has two CPUs for tasks, and no GPU. Each node has an object store of `store_bytes`.
    Ray's lists of tasks and processes are made by the dashboard.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2, "num_gpus": 0, "object_store_memory": store_bytes,
            "include_dashboard": dashboard, "dashboard_host": "127.0.0.1", "dashboard_port": port,
        },
    )  # fmt: skip
    try:
        nodes = [cluster.add_node(**kind, object_store_memory=store_bytes) for kind in kinds]
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster, [node.node_id for node in nodes]
    finally:
        ray.shutdown()
        cluster.shutdown()
