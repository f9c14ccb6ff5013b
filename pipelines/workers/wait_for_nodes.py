"""Waiting for an autoscaler to start nodes when a cluster is too small for a run."""

import json
import time
from typing import NamedTuple

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

from daal.config import RayConfig
from daal.errors import ClusterError
from pipelines.show.console import show
from pipelines.workers.cluster_address import cluster_address
from pipelines.workers.resources import Resources, cluster_nodes, count_places, place

# If no new nodes are reported for this long, none will come: autoscalers report every 5 seconds.
QUIET_SECONDS = 20.0
POLL_SECONDS = 1.0


def place_in_time(config: RayConfig, common_batch: int = 0) -> Resources:
    """`place`, as soon as there are enough nodes.

    With ray.use_gpu=auto, it waits for GPUs if the cluster can start nodes with GPUs.

    Raises:
        ClusterError: the run doesn't fit, after ray.wait_minutes.
    """
    # A local Ray has no nodes to wait for.
    if not cluster_address() or config.wait_minutes == 0:
        return place(config, common_batch)
    last = time.monotonic() + 60 * config.wait_minutes
    asked = config.use_gpu == "auto" and _wait_for_gpus(config, last)
    try:
        while True:
            try:
                return place(config, common_batch)
            except ClusterError as error:
                if time.monotonic() >= last:
                    raise
                if not asked:
                    _ask_for_nodes(config, with_gpus=config.use_gpu is True)
                    asked = True
                    waits = f"Waiting for nodes for up to {config.wait_minutes:g} minutes"
                    show("yellow", "note", f"{error} {waits} (ray.wait_minutes).")
            time.sleep(min(5.0, max(0.1, last - time.monotonic())))
    finally:
        if asked:
            request_resources(bundles=[])  # the run's own tasks and workers hold the nodes now


def _wait_for_gpus(config: RayConfig, last: float) -> bool:
    """Ask an autoscaler for the workers' GPUs, until they are there or no more will come.

    Returns whether the request still stands.
    """
    if _num_gpu_places(config) >= config.least_workers or not _has_autoscaler(last):
        return False
    _ask_for_nodes(config, with_gpus=True)
    show(
        "yellow",
        "note",
        f"waiting for GPUs for {config.num_workers} workers, which the cluster may start, for up "
        f"to {config.wait_minutes:g} minutes (ray.wait_minutes); ray.use_gpu=false takes CPUs.",
    )
    heard = time.monotonic()
    while _num_gpu_places(config) < config.least_workers and time.monotonic() < last:
        if autoscaler_report().nodes_are_coming:
            heard = time.monotonic()
        elif time.monotonic() - heard > QUIET_SECONDS:
            break
        time.sleep(POLL_SECONDS)
    if _num_gpu_places(config):
        return True
    show(
        "yellow",
        "note",
        f"the cluster has started no nodes with GPUs for {config.num_workers} workers, so the run "
        "takes CPUs. It may start them for a smaller ray.num_workers; ray.use_gpu=true waits for "
        "GPUs and ends without them.",
    )
    request_resources(bundles=[])
    return False


def _num_gpu_places(config: RayConfig) -> int:
    return count_places(cluster_nodes(), config, use_gpu=True)


def _has_autoscaler(last: float) -> bool:
    # A new cluster has reported nothing yet; some time must remain to ask it.
    last = min(last - QUIET_SECONDS, time.monotonic() + QUIET_SECONDS)
    while not (types := autoscaler_report().node_types) and time.monotonic() < last:
        time.sleep(POLL_SECONDS)
    # Without an autoscaler, Ray names each node's type after the node.
    return any(not name.startswith("node_") for name in types)


class AutoscalerReport(NamedTuple):
    """Types of the present nodes, and whether more are starting."""

    node_types: list[str]
    nodes_are_coming: bool


def autoscaler_report() -> AutoscalerReport:
    """The last report of either version of Ray's autoscaler."""
    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        nodes = [*status.active_nodes, *status.idle_nodes]
        return AutoscalerReport(
            [node.ray_node_type_name for node in nodes],
            bool(status.pending_launches or status.pending_nodes),
        )
    text = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    report = json.loads(text or "{}").get("autoscaler_report") or {}
    coming = report.get("pending_launches") or report.get("pending_nodes")
    return AutoscalerReport(list(report.get("active_nodes", {})), bool(coming))


def _ask_for_nodes(config: RayConfig, with_gpus: bool) -> None:
    worker = {"CPU": config.cpus_per_worker} | ({"GPU": 1} if with_gpus else {})
    request_resources(bundles=[worker] * config.num_workers + [{"CPU": 1}] * config.data_cpus)
