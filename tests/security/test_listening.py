"""S4, S5: who may talk to the Ray that `daal` starts by itself; one start, seen from outside."""

import json
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import grpc
import psutil
import pytest
from heads import ray_folder, without_ray
from programs import python

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
WRONG = "f" * 64
REFUSED = {None: 401, WRONG: 403}  # the status for a missing and a wrong token
SERVE = """
import json, sys
import ray
from daal.config import RayConfig
from pipelines.workers.session import ray_session

with ray_session(RayConfig(num_workers=1)):
    gcs = ray.get(ray.remote(lambda: ray.get_runtime_context().gcs_address).remote())
    print(json.dumps([gcs, ray._private.worker.get_dashboard_url()]), flush=True)
    sys.stdin.read()
"""
JOIN = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print("nodes:", len(ray.nodes()))
"""
FIXED_METRICS_PORTS = 44217, 44227  # of the first Ray on a machine
# One call of each of Ray's services; which of them a port has is found by asking.
CALLS = (
    "NodeInfoGcsService/GetAllNodeInfo", "InternalKVGcsService/InternalKVKeys",
    "JobInfoGcsService/GetAllJobInfo", "NodeManagerService/GetSystemConfig",
    "ObjectManagerService/Pull", "CoreWorkerService/PushTask", "ReporterService/GetTraceback",
)  # fmt: skip


class Listening(NamedTuple):
    """A socket that waits for connections."""

    address: str
    port: int
    program: str


@dataclass(frozen=True)
class OwnRay:
    """A Ray that daal started, and a user's home with its token."""

    pids: list[int]
    gcs: str
    dashboard: str
    token: Path
    session: Path
    environment: dict[str, str]

    def listening(self):
        found = []
        for pid in self.pids:
            with suppress(psutil.Error):  # it has ended
                program = command_line(pid)
                connections = psutil.Process(pid).net_connections("tcp")
                found += [Listening(*each.laddr, program) for each in connections
                          if each.status == psutil.CONN_LISTEN]  # fmt: skip
        return found

    @property
    def metrics_port(self):
        (file,) = self.session.glob("metrics_export_port_*")
        return int(file.read_text())

    def join(self, **environment):
        """Join it as another driver."""
        return python("-c", JOIN, self.gcs, env=self.environment | environment)


@pytest.fixture(scope="module")
def own_ray():
    with ray_folder() as scratch:
        home = Path(scratch) / "home"
        home.mkdir()
        environment = without_ray() | {"HOME": str(home), "RAY_TMPDIR": scratch}
        complaints = Path(scratch) / "stderr"
        with complaints.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", SERVE], cwd=ROOT, env=environment, umask=0, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
            )  # fmt: skip
        assert process.stdin and process.stdout
        try:
            line = process.stdout.readline()
            assert line, complaints.read_text()
            gcs, dashboard = json.loads(line)
            yield OwnRay(
                [process.pid, *(p.pid for p in psutil.Process(process.pid).children(True))],
                gcs,
                f"http://{dashboard}",
                home / ".ray/auth_token",
                Path(scratch) / "ray/session_latest",
                # Without the switch, another driver takes 127.0.0.1 for the machine's address.
                environment
                | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
            )
        finally:
            process.stdin.close()
            process.wait()


def content_of(path):
    with suppress(FileNotFoundError):  # Ray removes what it no longer needs
        return path.read_bytes()
    return b""


def command_line(pid):
    with suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return ""  # it has ended


def status_of(url, token):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as it:
            return int(it.status)
    except urllib.error.HTTPError as error:
        return error.code


def answers(target, token):
    """What a port says to each of Ray's calls that it knows; none if it isn't gRPC."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    said = {}
    with grpc.insecure_channel(target) as channel:
        for call in CALLS:
            ask = channel.unary_unary(f"/ray.rpc.{call}")
            try:
                ask(b"", metadata=metadata)
                said[call] = "OK"
            except grpc.RpcError as error:
                said[call] = error.code().name
                if said[call] == "UNAVAILABLE":
                    break
    return {call: code for call, code in said.items() if code != "UNIMPLEMENTED"}


def test_s4_all_ports_listen_on_loopback_only(own_ray):
    found = own_ray.listening()
    assert own_ray.dashboard in {f"http://127.0.0.1:{each.port}" for each in found}
    assert len(found) > 5
    addresses = {ip_address(each.address.removeprefix("::ffff:")) for each in found}
    assert all(address.is_loopback for address in addresses), found


@pytest.mark.parametrize("token", [None, WRONG], ids=["none", "wrong"])
def test_s4_every_port_but_the_metrics_asks_for_the_token(own_ray, token):
    host = own_ray.gcs.rpartition(":")[0]
    open_to_all = {own_ray.metrics_port, *FIXED_METRICS_PORTS}
    asked = set()
    for each in own_ray.listening():
        if "dashboard.py" in each.program or each.port in open_to_all:
            continue
        said = answers(f"{host}:{each.port}", token)
        if each not in own_ray.listening():
            continue  # its process, an idle worker, has ended
        asked |= said.keys()
        if set(said.values()) == {"UNAVAILABLE"}:  # speaks HTTP
            assert status_of(f"http://{host}:{each.port}/", token) == REFUSED[token], each
        else:
            assert set(said.values()) == {"UNAUTHENTICATED"}, (each, said)
    assert asked >= set(CALLS)
    right = answers(own_ray.gcs, own_ray.token.read_text())
    assert right["NodeInfoGcsService/GetAllNodeInfo"] == "OK"
    # As SECURITY.md says.
    assert status_of(f"http://{host}:{own_ray.metrics_port}/metrics", token) == 200


def test_s4_the_job_api_refuses_a_wrong_token_and_none(own_ray):
    for path in ("/api/jobs/", "/api/version", "/nodes?view=summary", "/api/v0/tasks"):
        url = own_ray.dashboard + path
        assert {token: status_of(url, token) for token in REFUSED} == REFUSED, path
    assert status_of(f"{own_ray.dashboard}/api/jobs/", own_ray.token.read_text()) == 200


def test_s4_nobody_joins_without_the_token(own_ray):
    tries = [
        {"RAY_AUTH_MODE": "token"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": WRONG},
        {"RAY_AUTH_MODE": "disabled"},
    ]
    with ThreadPoolExecutor() as together:  # Ray tries for long before it gives up
        right, wrong, none = together.map(lambda given: own_ray.join(**given), tries)
    assert "nodes: 1" in right.stdout, right.stderr
    for refused in (wrong, none):
        assert refused.returncode != 0 and "nodes:" not in refused.stdout
        assert "token" in refused.stderr.lower()


def test_s5_the_token_is_in_its_file_alone(own_ray):
    assert stat.S_IMODE(own_ray.token.stat().st_mode) == 0o600
    token = own_ray.token.read_bytes()
    contents = {path: content_of(path) for path in own_ray.session.rglob("*") if path.is_file()}
    assert len(contents) > 10
    assert [path for path, content in contents.items() if token in content] == []
    lines = "".join(map(command_line, own_ray.pids))
    assert "raylet" in lines and token.decode() not in lines
