"""Ray heads of a test's own, on free loopback ports and in a folder of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


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
        kill(processes_of(self.folder))
        self.process.wait()


@contextmanager
def ray_head(
    token: str | None = None,
    num_cpus: int = 4,
    node_types: dict[str, Any] | None = None,
    autoscaler: int = 1,
) -> Iterator[Head]:
    """With so many logical CPUs; gone, with all it started, behind the block.

    With `node_types`, Ray's autoscaler of this version pretends such nodes on this machine.
    """
    with tempfile.TemporaryDirectory(prefix="ray") as scratch:
        port, dashboard, metrics = free_port(), free_port(), free_port()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment = kept | {
            "RAY_AUTH_MODE": "disabled" if token is None else "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # of the jobs' python
        }
        autoscaling = []
        if node_types is not None:
            file = Path(scratch) / "autoscaling.json"
            file.write_text(json.dumps(_autoscaling(num_cpus, node_types, f"127.0.0.1:{port}")))
            autoscaling = [f"--autoscaling-config={file}"]
        process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
                "--node-ip-address=127.0.0.1", f"--port={port}", f"--num-cpus={num_cpus}",
                "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
                f"--metrics-export-port={metrics}", f"--ray-client-server-port={free_port()}",
                f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={scratch}",
                *autoscaling,
            ],
            # Workers change their command lines; what they inherit still tells whose they are.
            env=environment
            | {"DAAL_TEST_HEAD": scratch}
            | ({} if token is None else {"RAY_AUTH_TOKEN": token})
            | ({} if node_types is None else _pretending(autoscaler)),
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        head = Head(
            f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", metrics, scratch,
            environment, process,
        )  # fmt: skip
        try:
            _wait_for(dashboard)
            yield head
        finally:
            # Ray would take half a minute to end it in peace.
            head.kill()
            assert not wait_until_gone(scratch, 30), "processes of the head outlived it"


# Node 0 of type ray.head.default, as FakeMultiNodeProvider of Ray expects it.
HEAD_ID, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"


def _pretending(autoscaler: int) -> dict[str, str]:
    """What `ray up` and KubeRay say to the head of a cluster, and that its nodes are pretended."""
    said = {"RAY_FAKE_CLUSTER": "1"}
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


def _wait_for(port: int) -> None:
    for _ in range(240):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)


def kill(processes: list[int]) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


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


def wait_until_gone(folder: str, seconds: int, but_for: tuple[str, ...] = ()) -> list[int]:
    """Those that are still there after so long, but for some that may."""
    for _ in range(seconds):
        if not processes_of(folder, but_for):
            return []
        time.sleep(1)
    return processes_of(folder, but_for)
