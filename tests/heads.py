"""Ray heads of a test's own, on free loopback ports and in a folder of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from waiting import wait_until

RAY = str(Path(sys.executable).with_name("ray"))

# Ray gives its own processes a minute to start, which is too little on a busy machine.
PATIENCE = {
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "900",
    "RAY_worker_register_timeout_seconds": "900",
    "RAY_worker_niceness": "0",  # by default, workers get little time beside other programs
}

# For a Ray with GPUs that are numbers only: it takes as many as it is told of, and whatever the
# machine has, torch finds none. (Tests run with CUDA_VISIBLE_DEVICES="", where Ray takes none.)
LOGICAL_GPUS = {
    "CUDA_VISIBLE_DEVICES": ",".join(str(-number) for number in range(1, 65)),
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
}


def without_ray() -> dict[str, str]:
    """This process's environment without what it tells Ray, but for patience."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | PATIENCE


@dataclass(frozen=True)
class Head:
    """A running head, and what a driver that is to join it needs in its environment."""

    address: str  # RAY_ADDRESS
    dashboard: str
    metrics_port: int
    folder: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes]

    @property
    def joined(self) -> dict[str, str]:
        """The environment of a driver that joins it."""
        return self.environment | {"RAY_ADDRESS": self.address}

    def kill(self) -> None:
        """As a machine that loses its power: every process at once, without a word."""
        self.process.kill()
        end_processes(self.folder)
        self.process.wait()


@contextmanager
def ray_folder() -> Iterator[str]:
    """A folder for one Ray. After the block its processes are ended and the folder is removed.

    Its path is short: sockets lie deep in it, and a socket's path has 107 bytes at most.
    """
    # What a process leaves there as it is killed is of no interest.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        try:
            yield folder
        finally:
            end_processes(folder)


def end_processes(folder: str) -> None:
    """Kill the processes that name the folder, until there is none."""

    def none_left() -> bool:
        found = processes_of(folder)  # one of them may have started another meanwhile
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not found

    wait_until(none_left, f"processes of {folder} don't end")


@contextmanager
def ray_head(
    token: str | None = None,
    num_cpus: int = 4,
    node_types: dict[str, Any] | None = None,
    autoscaler: int = 1,
) -> Iterator[Head]:
    """With so many logical CPUs. After the block it is gone, with all it started.

    With `node_types`, Ray's autoscaler of this version pretends such nodes on this machine.
    """
    with ray_folder() as scratch:
        port, dashboard, metrics = free_port(), free_port(), free_port()
        environment = without_ray() | {
            "RAY_AUTH_MODE": "disabled" if token is None else "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # of the jobs' python
        }
        autoscaling, pretences = [], {}
        if node_types is not None:
            file = Path(scratch) / "autoscaling.json"
            file.write_text(json.dumps(_autoscaling(num_cpus, node_types, f"127.0.0.1:{port}")))
            autoscaling, pretences = [f"--autoscaling-config={file}"], _pretending(autoscaler)
        process = subprocess.Popen(
            [
                RAY, "start", "--head", "--block",
                "--node-ip-address=127.0.0.1", f"--port={port}", f"--num-cpus={num_cpus}",
                "--num-gpus=0", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
                f"--metrics-export-port={metrics}", f"--ray-client-server-port={free_port()}",
                f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={scratch}",
                *autoscaling,
            ],
            # Workers change their command lines; what they inherit still tells whose they are.
            env=environment
            | {"DAAL_TEST_HEAD": scratch}
            | ({} if token is None else {"RAY_AUTH_TOKEN": token})
            | pretences,
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        head = Head(
            f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", metrics, scratch,
            environment, process,
        )  # fmt: skip
        try:
            wait_until(lambda: _has_a_node(head, token), "the head doesn't start")
            yield head
        finally:
            # Ray would take half a minute to end it in peace.
            head.kill()


@contextmanager
def another_node(head: Head, num_cpus: int = 4) -> Iterator[None]:
    """A node that joins it, until the block ends."""
    node = subprocess.Popen(
        [RAY, "start", "--block", f"--num-cpus={num_cpus}", f"--address={head.address}",
         "--node-ip-address=127.0.0.1"],
        env=head.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        node.terminate()
        node.wait()


# Node 0 of type ray.head.default, as FakeMultiNodeProvider of Ray expects it.
HEAD_ID, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"


def _pretending(autoscaler: int) -> dict[str, str]:
    """What `ray up` and KubeRay say to the head of a cluster, and that its nodes are pretended."""
    said = LOGICAL_GPUS | {"RAY_FAKE_CLUSTER": "1"}
    if autoscaler == 2:
        said |= {"RAY_enable_autoscaler_v2": "1", "RAY_NODE_TYPE_NAME": HEAD_TYPE}
        said |= {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    return said


def _autoscaling(num_cpus: int, node_types: dict[str, Any], address: str) -> dict[str, Any]:
    from ray.autoscaler._private.monitor import BASE_READONLY_CONFIG  # all fields, without nodes

    head = {"resources": {"CPU": num_cpus}, "node_config": {}, "max_workers": 0}
    return BASE_READONLY_CONFIG | {
        "max_workers": 8,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "external",  # Ray's wheel lacks the defaults of this provider's own type
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "gcs_address": address,
        },
        "head_node_type": HEAD_TYPE,
        "available_node_types": {HEAD_TYPE: head, **node_types},
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _has_a_node(head: Head, token: str | None) -> bool:
    """Ray starts its first node after the dashboard. A driver waits for it for half a minute."""
    assert head.process.poll() is None, f"it has ended with exit code {head.process.returncode}"
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{head.dashboard}/nodes?view=hostNameList", headers=headers)
    with suppress(OSError), urllib.request.urlopen(request) as answer:
        return bool(json.load(answer)["data"]["hostNameList"])
    return False


def processes_of(folder: str, but_for: tuple[str, ...] = ()) -> list[int]:
    """Processes that name the folder in their command line or environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            named = folder in command or folder in process.environ().values()
            if named and not command.startswith(but_for):
                found.append(process.pid)
    return found
