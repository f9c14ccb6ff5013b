"""What a run takes of a cluster; what can't be placed is refused at once, or waited for."""

import os
import time
from dataclasses import dataclass

import ray
from ray.autoscaler.sdk import request_resources

from daal.config import RayConfig
from daal.errors import ClusterError
from pipelines.console import show

# Workers live as long as the run and are idle while tasks make pseudo-labels on the same GPUs. A
# share above one half puts each worker on a GPU of its own.
WORKER_GPU, TASK_GPU = 0.6, 0.4


@dataclass(frozen=True)
class Resources:
    """What this run takes of the cluster."""

    num_workers: int  # as many as there is room for now
    least_workers: int  # an elastic run goes on with these
    most_workers: int
    use_gpu: bool
    cpus_per_worker: float
    threads: int  # of each worker
    threads_per_task: int  # pseudo-labels and scores: while they are made, the workers wait
    node_store_bytes: int  # object store of the smallest node
    num_gpus: int = 0  # of the whole cluster

    @property
    def gpus_per_worker(self) -> float:
        return WORKER_GPU if self.use_gpu else 0

    @property
    def gpus_per_task(self) -> float:
        return TASK_GPU if self.use_gpu else 0

    def __str__(self) -> str:
        device = "GPUs" if self.use_gpu else f"CPUs ({self.threads} threads each)"
        workers = "worker" if self.num_workers == 1 else "workers"
        text = f"{self.num_workers} {workers} on {device}"
        if self.use_gpu and self.num_gpus > self.num_workers:
            text += f"; this cluster has {self.num_gpus} GPUs: ray.num_workers takes more"
        return text


def place_in_time(config: RayConfig) -> Resources:
    """`place`, as soon as there are nodes enough: an autoscaling cluster starts them on demand."""
    last = time.monotonic() + 60 * config.wait_minutes
    asked = False
    try:
        while True:
            try:
                return place(config)
            except ClusterError as error:
                # A local Ray has no nodes to wait for.
                if time.monotonic() >= last or not os.environ.get("RAY_ADDRESS"):
                    raise
                if not asked:
                    _ask_for_nodes(config)
                    asked = True
                    waits = f"Waiting for nodes for up to {config.wait_minutes:g} minutes"
                    show("yellow", "note", f"{error} {waits} (ray.wait_minutes).")
            time.sleep(min(5.0, max(0.1, last - time.monotonic())))
    finally:
        if asked:
            request_resources(bundles=[])  # the run's own tasks and workers hold the nodes now


def _ask_for_nodes(config: RayConfig) -> None:
    worker = {"CPU": config.cpus_per_worker} | ({"GPU": 1} if config.use_gpu is True else {})
    bundles = [worker] * config.num_workers + [{"CPU": 1}] * config.data_cpus
    request_resources(bundles=bundles)


def place(config: RayConfig) -> Resources:
    """What a run takes of the cluster as it is now. Raises ClusterError if it doesn't fit."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    if config.use_gpu == "auto" and 1 <= gpus < config.least_workers:
        # Batches are global, and split by whatever divides the number of workers: rather few
        # workers on GPUs than all of them on CPUs.
        fewer = max(n for n in range(1, int(gpus) + 1) if config.num_workers % n == 0)
        config = config.model_copy(update={"num_workers": fewer, "min_workers": None})
    least = config.least_workers
    workers = f"ray.{'min' if config.min_workers else 'num'}_workers={least}"
    if cpus < (needed := config.cpus_needed):
        raise ClusterError(
            f"the cluster has {cpus:g} CPUs, but the run needs {needed:g}: {workers} x "
            f"ray.cpus_per_worker={config.cpus_per_worker:g} + ray.data_cpus={config.data_cpus} "
            "for reading images; lower these or add nodes."
        )
    places = sum(int(node.get("CPU", 0.0) // config.cpus_per_worker) for node in nodes)
    if places < least:
        raise ClusterError(
            f"the cluster's nodes have room for {places} workers of ray.cpus_per_worker="
            f"{config.cpus_per_worker:g} CPUs, but {workers}; a worker can't be split over nodes: "
            "lower either."
        )
    use_gpu = gpus >= least if config.use_gpu == "auto" else config.use_gpu
    if use_gpu and gpus < least:
        raise ClusterError(
            f"the cluster has {gpus:g} GPUs, but ray.use_gpu=true and {workers} need {least}; "
            "lower it, add GPU nodes, or set ray.use_gpu=false."
        )
    num_workers = min(config.num_workers, places, int(gpus) if use_gpu else places)
    # Of the largest node: in a container it is Ray that knows the limit.
    cores = max(1, min(os.cpu_count() or 1, int(max(node.get("CPU", 0.0) for node in nodes))))
    workers_per_node = -(-num_workers // len(nodes))
    threads = config.threads_per_worker or max(1, cores // workers_per_node)
    return Resources(
        num_workers=num_workers,
        least_workers=least,
        most_workers=config.num_workers,
        use_gpu=bool(use_gpu),
        cpus_per_worker=config.cpus_per_worker,
        threads=threads,
        threads_per_task=min(cores, threads * workers_per_node),
        node_store_bytes=int(min(node.get("object_store_memory", 0.0) for node in nodes)),
        num_gpus=int(gpus),
    )
