"""How many workers, GPUs and threads a run takes of a cluster.

`plan` is a pure function of the nodes and the configuration. It counts node by node, because a
worker needs its CPUs and its GPU on one node.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import ray
import ray.util

from daal.available_cpus import available_cpus
from daal.config import RayConfig
from daal.errors import ClusterError


@dataclass(frozen=True)
class Node:
    """What a node has. `cpus` is what Ray was told; `cores` is what computes."""

    cpus: float
    gpus: float
    cores: int
    store_bytes: int  # of its object store

    def places(self, cpus_per_worker: float, use_gpu: bool) -> int:
        """How many workers this node has room for."""
        places = int(self.cpus / cpus_per_worker + 1e-9)
        return min(places, int(self.gpus)) if use_gpu else places


@dataclass(frozen=True)
class Resources:
    """What a run takes of the cluster. A worker has a whole GPU: Ray plans groups by each node's
    sum of GPUs, which would be wrong for fractions."""

    num_workers: int  # that fit now
    least_workers: int  # an elastic run continues with this number
    most_workers: int
    use_gpu: bool
    cpus_per_worker: float
    threads: int  # of each worker
    threads_per_task: int  # pseudo-labels and scores, while the workers wait
    node_store_bytes: int  # the smallest object store of the nodes that get workers
    num_gpus: int = 0  # of the whole cluster

    @property
    def per_worker(self) -> dict[str, float]:
        """What Ray reserves for a worker on one node."""
        return {"CPU": self.cpus_per_worker} | ({"GPU": 1.0} if self.use_gpu else {})

    def __str__(self) -> str:
        device = "GPUs" if self.use_gpu else f"CPUs ({self.threads} threads each)"
        workers = "worker" if self.num_workers == 1 else "workers"
        text = f"{self.num_workers} {workers} on {device}"
        if self.use_gpu and self.num_gpus > self.num_workers:
            text += f"; this cluster has {self.num_gpus} GPUs: ray.num_workers takes more"
        return text


def place(config: RayConfig, common_batch: int = 0, threads: int | None = None) -> Resources:
    """`plan` on the cluster's nodes as they are now."""
    return plan(cluster_nodes(), config, common_batch, threads)


def plan(
    nodes: Sequence[Node],
    config: RayConfig,
    common_batch: int = 0,
    threads: int | None = None,
) -> Resources:
    """What a run takes of these nodes.

    The number of workers divides `common_batch` (`Config.common_batch`), so that they share batches
    equally; 0: any number does. threads: of each worker, by default a node's cores divided by its
    workers.

    Raises:
        ClusterError: it doesn't fit.
    """
    least, most = config.least_workers, config.num_workers
    use_gpu = bool(config.use_gpu)
    if config.use_gpu == "auto":
        on_gpus = count_places(nodes, config, use_gpu=True)
        use_gpu = on_gpus > 0
        if 0 < on_gpus < least:  # fewer workers on GPUs are preferred to all on CPUs
            least = most = largest_share(on_gpus, common_batch or least)
    _raise_if_too_small(nodes, config, least, use_gpu)
    num_workers = largest_share(min(most, fitting_workers(nodes, config, use_gpu)), common_batch)

    held = _packed(nodes, config, num_workers, use_gpu)
    threads = threads or max(1, min(node.cores // n for node, n in held))
    return Resources(
        num_workers=num_workers,
        least_workers=least,
        most_workers=most,
        use_gpu=use_gpu,
        cpus_per_worker=config.cpus_per_worker,
        threads=threads,
        threads_per_task=max(min(node.cores, threads * n) for node, n in held),
        node_store_bytes=min(node.store_bytes for node, _ in held),
        num_gpus=int(sum(node.gpus for node in nodes)),
    )


def count_places(nodes: Sequence[Node], config: RayConfig, use_gpu: bool) -> int:
    """How many workers fit on these nodes, each with its CPUs and its GPU if `use_gpu`."""
    return sum(node.places(config.cpus_per_worker, use_gpu) for node in nodes)


def fitting_workers(nodes: Sequence[Node], config: RayConfig, use_gpu: bool) -> int:
    """How many workers fit on these nodes, beside the CPUs that read images."""
    cpus = sum(node.cpus for node in nodes) - config.data_cpus
    return min(count_places(nodes, config, use_gpu), int(cpus / config.cpus_per_worker + 1e-9))


def largest_share(num_workers: int, common_batch: int) -> int:
    """The largest number up to `num_workers` that divides `common_batch`; 0 if there is none."""
    return next((n for n in range(num_workers, 0, -1) if common_batch % n == 0), 0)


def cluster_nodes() -> list[Node]:
    """The nodes of the cluster that is joined."""
    here, cpus_here = ray.util.get_node_ip_address(), available_cpus()
    nodes = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if not node["Alive"]:
            continue
        has = node["Resources"]
        cpus = has.get("CPU", 0.0)
        # Ray may have been told more than this machine has; other nodes can't be checked.
        cores = min(int(cpus), cpus_here) if node["NodeManagerAddress"] == here else int(cpus)
        store_bytes = int(has.get("object_store_memory", 0.0))
        nodes.append(Node(cpus, has.get("GPU", 0.0), max(1, cores), store_bytes))
    return nodes


def _packed(
    nodes: Sequence[Node], config: RayConfig, num_workers: int, use_gpu: bool
) -> list[tuple[Node, int]]:
    """The nodes that get workers, and how many. Ray fills the node with most room first."""
    held = []
    places = [(node.places(config.cpus_per_worker, use_gpu), node) for node in nodes]
    for number, node in sorted(places, key=lambda place: (-place[0], -place[1].cores)):
        if taken := min(number, num_workers):
            held.append((node, taken))
            num_workers -= taken
    return held


def _raise_if_too_small(
    nodes: Sequence[Node], config: RayConfig, least: int, use_gpu: bool
) -> None:
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    workers = f"ray.{'min' if config.min_workers else 'num'}_workers={least}"
    if cpus < (needed := least * config.cpus_per_worker + config.data_cpus):
        raise ClusterError(
            f"the cluster has {cpus:g} CPUs, but the run needs {needed:g}: {workers} x "
            f"ray.cpus_per_worker={config.cpus_per_worker:g} + ray.data_cpus={config.data_cpus} "
            "for reading images; lower these or add nodes."
        )
    if (places := count_places(nodes, config, use_gpu)) < least:
        raise ClusterError(
            f"the cluster of {cpus:g} CPUs and {gpus:g} GPUs has room for {places} workers of "
            f"ray.cpus_per_worker={config.cpus_per_worker:g} CPUs{' and a GPU' * use_gpu}, but "
            f"{workers}; a worker can't be split over nodes: lower either, or add nodes"
            + (", or set ray.use_gpu=false." if use_gpu else ".")
        )
