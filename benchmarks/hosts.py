"""One run over several hosts: network namespaces with Ray nodes, joined by cables that are counted.

    sudo python -m benchmarks.hosts [--hosts 2] [--json]          needs iproute2

Each host is a network namespace with an address of its own on a switch (a bridge in one more
namespace); the head and the nodes find each other over these alone, with a token. The head has
CPUs for tasks, every other host for one worker. A small adaptation of drawn images is run twice,
the second time with more steps: what more came over each worker's cable, divided by the steps, is
a step's traffic. Beside it what `daal size` says: 2 (W - 1) / W times the gradients, float32.
"""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.nodes import CPUS, SETTINGS, digest, drawn
from benchmarks.small_run import scratch_folder
from benchmarks.tables import parse, parser_of, tell
from daal.checkpoint import load
from daal.errors import ClusterError

STEPS = 4, 24
READY_SECONDS = 900


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("--hosts", type=int, default=2, help="besides the head's")
    options.add_argument("--ids", type=int, default=40, help="drawn training identities a domain")
    given = parse(options)
    with scratch_folder(prefix="hosts") as scratch, network(given.hosts + 1) as hosts:
        rows = measure(hosts, Path(scratch), given.ids)
    tell(given, "A run over hosts, bytes over the cables of workers", rows)


def measure(hosts: "Hosts", scratch: Path, num_ids: int) -> list[dict[str, object]]:
    num_workers = len(hosts.names) - 1
    settings = [*SETTINGS, *drawn(scratch, num_ids), f"ray.num_workers={num_workers}"]
    runs = []
    with hosts.ray(scratch) as environment:
        for steps in STEPS:
            out = scratch / f"steps-{steps}"
            before = hosts.bytes_received()
            done = hosts.on_the_head(
                [
                    *("-m", "pipelines.cli", "adapt", str(scratch / "recipe.yaml")),
                    *settings, f"adapt.steps_per_epoch={steps}", f"out={out}",
                ],
                environment,
            )  # fmt: skip
            if done.returncode:
                raise ClusterError(f"the run failed: {done.stderr[-2000:]}")
            after = hosts.bytes_received()
            runs.append([b - a for a, b in zip(before, after, strict=True)])
    tensors, _ = load(scratch / f"steps-{STEPS[0]}/iteration-01/checkpoint")
    gradients = 4 * sum(t.numel() for n, t in tensors.items() if not n.endswith(BUFFERS))
    epochs = 2  # of SETTINGS
    more_steps = epochs * (STEPS[1] - STEPS[0])
    per_step = [(more - few) / more_steps for few, more in zip(*runs, strict=True)]
    weights = f"steps-{STEPS[0]}/iteration-01/checkpoint/weights.safetensors"
    return [
        {
            "name": f"{num_workers} hosts with a worker each",
            "step_over_paper": [
                round(found / (2 * (num_workers - 1) / num_workers * gradients), 2)
                for found in per_step[1:]
            ],
            "step_MB": [round(found / 1e6, 1) for found in per_step[1:]],
            "whole_run_MB": [round(found / 1e6) for found in runs[0]],
            "weights": digest(scratch / weights),
        }
    ]


BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class Hosts:
    """Network namespaces, the head's first."""

    def __init__(self, names: list[str], switch: str) -> None:
        self.names, self.switch = names, switch

    def address(self, number: int) -> str:
        return f"10.77.0.{number + 1}"

    def command(self, number: int, arguments: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self.names[number], *arguments]

    def on_the_head(
        self, arguments: list[str], environment: dict[str, str]
    ) -> "subprocess.CompletedProcess[str]":
        """Python on the head's host."""
        return subprocess.run(
            self.command(0, [sys.executable, *arguments]),
            env=environment, capture_output=True, text=True,
        )  # fmt: skip

    def bytes_received(self) -> list[int]:
        """By each host so far; counted at the switch, which sends them."""
        found = []
        for number in range(len(self.names)):
            text = subprocess.run(
                ["ip", "-n", self.switch, "-s", "-j", "link", "show", f"port{number}"],
                capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
            found.append(int(json.loads(text)[0]["stats64"]["tx"]["bytes"]))
        return found

    @contextmanager
    def ray(self, scratch: Path) -> Iterator[dict[str, str]]:
        """A head and nodes that join it; the environment of drivers on the head's host."""
        (scratch / "recipe.yaml").write_text("{}\n")
        token = secrets.token_hex(32)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment = kept | {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0",
            "GLOO_SOCKET_IFNAME": "eth0",  # all hosts have this machine's name, which is loopback
        }  # fmt: skip
        ray = str(Path(sys.executable).with_name("ray"))
        head = f"{self.address(0)}:6379"
        store = f"--object-store-memory={200 * 2**20}"
        with ExitStack() as stack:
            for number in range(len(self.names)):
                where = (
                    ["--head", "--port=6379", "--num-cpus=2", f"--temp-dir={scratch}/ray"]
                    if number == 0
                    else [f"--address={head}", f"--num-cpus={CPUS}"]
                )
                arguments = [
                    *(ray, "start", "--block", f"--node-ip-address={self.address(number)}"),
                    *where, store,
                ]  # fmt: skip
                log = stack.enter_context(open(scratch / f"host-{number}.log", "w"))
                process = subprocess.Popen(
                    self.command(number, arguments), env=environment, stdout=log, stderr=log
                )
                stack.callback(process.wait)
                stack.callback(process.terminate)
                # One after the other: nodes of one machine that start at once may be in each
                # other's way.
                self._wait_for_nodes(number + 1, environment | {"RAY_ADDRESS": head})
            yield environment | {"RAY_ADDRESS": head}

    def _wait_for_nodes(self, number: int, environment: dict[str, str]) -> None:
        count = (
            "import ray; ray.init(logging_level=40, log_to_driver=False); print(len(ray.nodes()))"
        )
        last = time.monotonic() + READY_SECONDS
        while time.monotonic() < last:
            done = self.on_the_head(["-c", count], environment)
            if done.stdout.strip().endswith(str(number)):
                return
            time.sleep(1)
        raise ClusterError(f"the nodes did not find the head: {done.stdout} {done.stderr[-2000:]}")


@contextmanager
def network(number: int) -> Iterator[Hosts]:
    """So many namespaces, each with one cable to a switch; no way out of it."""
    stamp = f"daal{os.getpid()}"
    switch, names = f"{stamp}s", [f"{stamp}h{at}" for at in range(number)]
    hosts = Hosts(names, switch)
    with ExitStack() as stack:
        for name in (switch, *names):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for at, name in enumerate(names):
            port = f"port{at}"
            ip("-n", switch, "link", "add", port, "type", "veth", "peer", "eth0", "netns", name)
            ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            ip("-n", name, "addr", "add", f"{hosts.address(at)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        yield hosts


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


if __name__ == "__main__":
    main()
