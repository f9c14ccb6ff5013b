"""Waiting for an autoscaler to start nodes when a cluster is too small for a run."""

import json
import time
from typing import Any, NamedTuple

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import (  # type: ignore[attr-defined]
    DEAD,
    GetClusterStatusReply,
)
from ray.experimental.internal_kv import _internal_kv_get

from daal.config import RayConfig
from daal.errors import ClusterError
from pipelines.show.console import show
from pipelines.workers.cluster_address import cluster_address
from pipelines.workers.resources import Resources, cluster_nodes, count_places, largest_share, place

# If no new nodes are reported for this long, none will come: autoscalers report every 5 seconds.
QUIET_SECONDS = 20.0
POLL_SECONDS = 1.0
RPC_SECONDS = 10.0


def place_in_time(config: RayConfig, common_batch: int = 0, start_gpus: bool = True) -> Resources:
    """`place`, as soon as there are enough nodes.

    With ray.use_gpu=auto and `start_gpus`, it waits for GPUs if the cluster can start nodes with
    GPUs.

    Raises:
        ClusterError: the run doesn't fit, after ray.wait_minutes.
    """
    # A local Ray has no nodes to wait for.
    if not cluster_address() or config.wait_minutes == 0:
        return place(config, common_batch)
    last = time.monotonic() + 60 * config.wait_minutes
    wanted = config.use_gpu == "auto" and start_gpus
    asked = wanted and _wait_for_gpus(config, common_batch, last)
    try:
        while True:
            try:
                return place(config, common_batch)
            except ClusterError as error:
                if time.monotonic() >= last:
                    raise
                if not asked:
                    _ask_for_nodes(config, config.num_workers, config.use_gpu is True)
                    asked = True
                    waits = f"Waiting for nodes for up to {config.wait_minutes:g} minutes"
                    show("yellow", "note", f"{error} {waits} (ray.wait_minutes).")
            time.sleep(min(5.0, max(0.1, last - time.monotonic())))
    finally:
        if asked:
            request_resources(bundles=[])  # the run's own tasks and workers hold the nodes now


def _wait_for_gpus(config: RayConfig, common_batch: int, last: float) -> bool:
    """Ask an autoscaler for the workers' GPUs, until they are there or none will come.

    Returns whether the request still stands.
    """
    number = config.num_workers
    if _gpus_are_there(config, number) or not _has_autoscaler(last):
        return False
    _ask_for_nodes(config, number, with_gpus=True)
    show(
        "yellow",
        "note",
        f"waiting for GPUs for {number} workers, which the cluster may start, for up "
        f"to {config.wait_minutes:g} minutes (ray.wait_minutes); ray.use_gpu=false takes CPUs.",
    )
    heard = time.monotonic()
    while not _gpus_are_there(config, number) and time.monotonic() < last:
        report = autoscaler_report()
        if report.nodes_are_coming:
            heard = time.monotonic()
        elif number in report.refused:
            number = largest_share(number - 1, common_batch or config.num_workers)
            if number == 0:
                break
            _ask_for_nodes(config, number, with_gpus=True)
            heard = time.monotonic()
        elif time.monotonic() - heard > QUIET_SECONDS:
            break
        time.sleep(POLL_SECONDS)
    if not count_places(cluster_nodes(), config, use_gpu=True):
        show(
            "yellow",
            "note",
            "the cluster has started no nodes with GPUs, so the run takes CPUs; "
            "ray.use_gpu=true waits for GPUs and ends without them.",
        )
        request_resources(bundles=[])
        return False
    return True


def _gpus_are_there(config: RayConfig, number: int) -> bool:
    needed = min(number, config.least_workers)
    return count_places(cluster_nodes(), config, use_gpu=True) >= needed


def _has_autoscaler(last: float) -> bool:
    # A new cluster has reported nothing yet; some time must remain to ask it.
    last = min(last - QUIET_SECONDS, time.monotonic() + QUIET_SECONDS)
    while not (types := autoscaler_report().node_types) and time.monotonic() < last:
        time.sleep(POLL_SECONDS)
    # Without an autoscaler, Ray names each node's type after the node.
    return any(not name.startswith("node_") for name in types)


class AutoscalerReport(NamedTuple):
    """Types of the present nodes, whether more are starting, and what can't be started.

    refused: numbers of workers with GPUs that version 2 can't start. It starts no node of such a
    request; version 1 starts what it can.
    """

    node_types: list[str]
    nodes_are_coming: bool
    refused: frozenset[int] = frozenset()


def autoscaler_report() -> AutoscalerReport:
    """The last report of either version of Ray's autoscaler."""
    if is_autoscaler_v2():
        return _report_of_version_2(GcsClient(ray.get_runtime_context().gcs_address))
    text = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    report = json.loads(text or "{}").get("autoscaler_report") or {}
    coming = report.get("pending_launches") or report.get("pending_nodes")
    return AutoscalerReport(list(report.get("active_nodes", {})), bool(coming))


def _report_of_version_2(client: Any) -> AutoscalerReport:
    # Ray's own `get_cluster_status` doesn't return refused requests.
    reply = GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=RPC_SECONDS))
    nodes, state = reply.cluster_resource_state.node_states, reply.autoscaling_state
    return AutoscalerReport(
        [node.ray_node_type_name for node in nodes if node.status != DEAD],
        bool(state.pending_instance_requests or state.pending_instances),
        frozenset(
            sum(asked.count for asked in refused.resource_requests if _has_gpu(asked.request))
            for refused in state.infeasible_cluster_resource_constraints
        ),
    )


def _has_gpu(request: Any) -> bool:
    return request.resources_bundle.get("GPU", 0) > 0


def _ask_for_nodes(config: RayConfig, num_workers: int, with_gpus: bool) -> None:
    worker = {"CPU": config.cpus_per_worker} | ({"GPU": 1} if with_gpus else {})
    request_resources(bundles=[worker] * num_workers + [{"CPU": 1}] * config.data_cpus)
