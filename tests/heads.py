"""Ray heads of a test's own, on free loopback ports and in a folder of their own."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from waiting import wait_until

# Ray gives its own processes a minute to start, which is too little on a busy machine.
PATIENCE = {
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "900",
    "RAY_worker_register_timeout_seconds": "900",
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
    # Again and again, as one of them may have started another while the list was made.
    wait_until(lambda: not kill(processes_of(folder)), f"processes of {folder} don't end")


@contextmanager
def ray_head(token: str | None = None, num_cpus: int = 4) -> Iterator[Head]:
    """With so many logical CPUs. After the block it is gone, with all it started."""
    with ray_folder() as scratch:
        port, dashboard, metrics = free_port(), free_port(), free_port()
        environment = without_ray() | {
            "RAY_AUTH_MODE": "disabled" if token is None else "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # of the jobs' python
        }
        process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
                "--node-ip-address=127.0.0.1", f"--port={port}", f"--num-cpus={num_cpus}",
                "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
                f"--metrics-export-port={metrics}", f"--ray-client-server-port={free_port()}",
                f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={scratch}",
            ],
            # Workers change their command lines; what they inherit still tells whose they are.
            env=environment
            | {"DAAL_TEST_HEAD": scratch}
            | ({} if token is None else {"RAY_AUTH_TOKEN": token}),
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        head = Head(
            f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", metrics, scratch,
            environment, process,
        )  # fmt: skip
        try:
            wait_until(lambda: _answers(process, dashboard), "the head doesn't start")
            yield head
        finally:
            # Ray would take half a minute to end it in peace.
            head.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    assert process.poll() is None, f"the head has ended with exit code {process.returncode}"
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def kill(processes: list[int]) -> list[int]:
    """Those that it was given."""
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return processes


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
