"""Ray manners: start a local Ray or join a cluster, and refuse at once what can't be placed."""

import logging
import math
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from daal.config import RayConfig
from daal.errors import ClusterError
from pipelines.arguments import errors, show

# Workers live as long as the run and are idle while tasks make pseudo-labels on the same GPUs. A
# share above one half puts each worker on a GPU of its own.
WORKER_GPU, TASK_GPU = 0.6, 0.4

LOOK_SECONDS, LOST_SECONDS = 3.0, 40.0  # whether the cluster is there; until it is given up


@dataclass(frozen=True)
class Resources:
    """What this run takes of the cluster."""

    num_workers: int  # as many as there is room for now
    use_gpu: bool
    cpus_per_worker: float
    threads: int  # of each worker
    cpus_per_node: int  # of the largest node, as a task on it could use them
    cpus_beside_workers: int  # what the workers leave of that for tasks (pseudo-labels, scores)
    node_store_bytes: int  # object store of the smallest node
    unused_gpus: int = 0

    @property
    def gpus_per_worker(self) -> float:
        return WORKER_GPU if self.use_gpu else 0

    @property
    def gpus_per_task(self) -> float:
        return TASK_GPU if self.use_gpu else 0

    def __str__(self) -> str:
        device = "GPUs" if self.use_gpu else f"CPUs ({self.threads} threads each)"
        unused = (
            f"; {self.unused_gpus} GPU(s) stay unused: set ray.num_workers={self.unused_gpus}"
            if self.unused_gpus
            else ""
        )
        return f"{self.num_workers} workers on {device}{unused}"


@contextmanager
def ray_session(config: RayConfig, verbose: bool = False) -> Iterator[Resources]:
    """Ray for the length of a run: RAY_ADDRESS's cluster if set, a local one otherwise.

    A local Ray listens on loopback only and asks for a token, unless RAY_AUTH_MODE says
    otherwise; it gets as many logical CPUs as the run needs, however few cores there are.

    Raises:
        ClusterError: the cluster can't be reached, refuses the token or is too small.
    """
    ours = not ray.is_initialized()
    if ours:
        _start_or_join(config, verbose)
    if not verbose:
        _silence_ray_data()
    if not ours:
        yield _place_in_time(config)
        return
    _end_on_sigterm()
    over = threading.Event()
    threading.Thread(target=_watch_cluster, args=(over,), daemon=True).start()
    try:
        yield _place_in_time(config)
    finally:
        over.set()
        ray.shutdown()


def _silence_ray_data() -> None:
    """It reports every execution on the driver's console, through loggers of its own."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _start_or_join(config: RayConfig, verbose: bool) -> None:
    quiet = logging.INFO if verbose else logging.ERROR
    address = os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"logging_level": quiet, "log_to_driver": verbose}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            if address:
                _knock(address)
                ray.init(address=address, **common)
            else:
                ensure_private_token()
                cpus = max(os.cpu_count() or 1, int(cpus_needed(config)))
                with nullcontext() if verbose else _without_its_first_line():
                    ray.init(
                        address="local", num_cpus=cpus, dashboard_host="127.0.0.1",
                        include_dashboard=True, **common,
                    )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray"
        raise ClusterError(
            f"{where} can't be used: {error} (RAY_ADDRESS, RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH "
            "say where it is and how to log in)."
        ) from error


@contextmanager
def _without_its_first_line() -> Iterator[None]:
    """Ray's C++ side says on file descriptor 2 that it will say nothing; all else is passed on."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            kept.seek(0)
            for line in kept:
                if b"RAY_BACKEND_LOG_LEVEL" not in line:
                    os.write(2, line)


def _knock(address: str) -> None:
    # Where nothing listens, ray.init would wait for minutes without a word.
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _end_on_sigterm() -> None:
    # The handler that Ray installs prints stacks, and aborts the process three seconds later.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _watch_cluster(over: threading.Event) -> None:
    # Ray ends a driver that has lost its cluster for a minute, from within and in its own words.
    address = ray.get_runtime_context().gcs_address
    lost_since = None
    while not over.wait(LOOK_SECONDS):
        try:
            _knock(address)
            lost_since = None
        except OSError:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > LOST_SECONDS:
                errors.show_cursor()  # which the live table has hidden
                gone = f"the Ray cluster at {address} is gone"
                show("red", "error", f"{gone}; the same command continues the run on another one.")
                sys.stderr.flush()
                os._exit(ClusterError.exit_code)  # nothing of Ray answers any more


def ensure_private_token() -> None:
    """Make the token that a local Ray asks for, if there is none, readable to this user alone.

    Ray 2.60 would write it with the umask's mode, so that others could read it for a while.
    """
    mode, token = (os.environ.get(f"RAY_AUTH_{name}", "") for name in ("MODE", "TOKEN"))
    if mode.lower() != "token" or token:
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.is_file():
            path.chmod(0o600)
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def cpus_needed(config: RayConfig) -> float:
    """CPUs that a run reserves, at least."""
    # While training and extracting, Ray Data decodes beside the workers; without a CPU of its
    # own it would wait for ever, and say nothing.
    return config.least_workers * config.cpus_per_worker + config.data_cpus


def _place_in_time(config: RayConfig) -> Resources:
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
    least = config.least_workers
    workers = f"ray.{'min' if config.min_workers else 'num'}_workers={least}"
    if cpus < (needed := cpus_needed(config)):
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
    cores = os.cpu_count() or 1
    workers_per_node = -(-num_workers // len(nodes))
    largest = max(1, int(max(node.get("CPU", 0.0) for node in nodes)))
    return Resources(
        num_workers=num_workers,
        use_gpu=bool(use_gpu),
        cpus_per_worker=config.cpus_per_worker,
        threads=config.threads_per_worker or max(1, cores // workers_per_node),
        cpus_per_node=min(cores, largest),
        cpus_beside_workers=max(
            1, min(cores, largest - math.ceil(workers_per_node * config.cpus_per_worker))
        ),
        node_store_bytes=int(min(node.get("object_store_memory", 0.0) for node in nodes)),
        unused_gpus=0 if use_gpu else int(gpus),
    )
