"""One run over several nodes: where its work is done, and what travels between them.

    python -m benchmarks.nodes [--nodes 1 2 4] [--json]

All nodes are on this machine: Ray's test cluster starts separate processes and an object store for
each. On each number of nodes, four workers read all pixels twice, and what a training needs of the
labels. The table says how many bytes of these each node's store takes in, as a multiple of what
there is: 1 if everything reaches it once, whatever its number of workers. Then follows a small
adaptation of drawn images (DDP by gloo). "lost": on two nodes, one is killed during a training, and
another comes. "elastic": the same with 1 to 2 workers, which continue alone. Weights are compared
by their bytes.
"""

import hashlib
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster
from ray.util.state import list_tasks

from benchmarks import small_run
from benchmarks.ray_nodes import ray_nodes
from benchmarks.tables import parse, parser_of, tell
from daal.drawn.domains import draw_domains
from daal.load_config import load_config
from pipelines.adapt import Adaptation
from pipelines.images.ingest import ingest
from pipelines.images.pixels import ImageSource, PixelReader, Pixels
from pipelines.run.folder import RunFolder
from pipelines.show.progress import Progress
from pipelines.workers.group import Worker, Workers
from pipelines.workers.resources import place

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # for when this is a script

NUM_FEATURES = 512  # of a ResNet-18
CPUS = 3  # of each worker: a node has CPUs for its workers, and the head for all other tasks
STORE = 200 * 2**20
SETTINGS = [
    *small_run.SETTINGS, "pretrain.epochs=1", "adapt.epochs=2", "adapt.steps_per_epoch=4",
    "iterations=1", f"ray.cpus_per_worker={CPUS}", "ray.images=decoded",
]  # fmt: skip


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("--nodes", type=int, nargs="*", default=[1, 2, 4])
    options.add_argument("--workers", type=int, default=4)
    options.add_argument("--ids", type=int, default=40, help="drawn training identities a domain")
    options.add_argument("--lost", action="store_true", help="a node is lost, another one comes")
    options.add_argument("--elastic", action="store_true", help="1 to 2 workers")
    given = parse(options)
    with small_run.scratch_folder() as scratch:
        world = drawn(Path(scratch), given.ids)
        group = [f"ray.num_workers={given.workers}"]
        rows = []
        for number in given.nodes:
            with nodes(number, given.workers // number) as (cluster, _):
                travelled = travel([*world, *group], scratch)
                row = one_run(f"{number} nodes", cluster, [*world, *group], scratch)
                rows.append(row | travelled)
        if given.lost:
            with nodes(2, given.workers // 2) as (cluster, _):
                rows.append(one_run("lost", cluster, [*world, *group], scratch, Loss(cluster)))
        if given.elastic:
            with nodes(2, 1) as (cluster, _):
                settings = [
                    *world, "ray.num_workers=2", "ray.min_workers=1",
                    "adapt.epochs=30", "adapt.steps_per_epoch=20",  # not over before it is back
                ]  # fmt: skip
                loss = Loss(cluster, seconds_alone=90)
                rows.append(one_run("elastic", cluster, settings, scratch, loss))
    tell(given, "A run over nodes", rows)


def nodes(number: int, workers: int) -> AbstractContextManager[tuple[Cluster, list[str]]]:
    """A cluster with room for that number of workers on each node."""
    return ray_nodes(number * [{"num_cpus": CPUS * workers}], STORE)


def drawn(folder: Path, num_ids: int) -> list[str]:
    images = folder / f"images-{num_ids}"
    draw_domains(images, num_train_ids=num_ids, num_test_ids=num_ids // 2, size=(64, 32))
    return [f"source.root={images}/source", f"target.root={images}/target"]


@dataclass
class Loss:
    """Kills a node during a training, and adds another one."""

    cluster: Cluster
    stage: str = "iteration-01"
    seconds_alone: float = 0.0
    due: threading.Event = field(default_factory=threading.Event)

    def watch(self, event: dict[str, Any]) -> None:
        if event.get("stage") == self.stage and "loss" in event:
            self.due.set()

    def kill(self) -> None:
        node = next(iter(self.cluster.worker_nodes))
        cpus = node._ray_params.num_cpus
        self.cluster.remove_node(node, allow_graceful=False)
        time.sleep(self.seconds_alone)
        self.cluster.add_node(num_cpus=cpus, object_store_memory=STORE)


@dataclass(frozen=True)
class ReadAll:
    """A job that reads what a training reads, and no more."""

    source: ImageSource
    labels: Any

    def run(self, worker: Worker) -> None:
        PixelReader(self.source, worker.device, "decoded", 0)
        ray.get(self.labels)


@dataclass(frozen=True)
class Nothing:
    def run(self, worker: Worker) -> None:
        pass


def travel(settings: list[str], scratch: str) -> dict[str, Any]:
    """What each node takes in when all workers read everything: nodes of workers, in any order."""
    config = load_config(None, [*SETTINGS, *settings])
    resources, progress = place(config.ray, config.common_batch), Progress(quiet=True)
    with Workers(config, RunFolder(f"{scratch}/travel"), resources, progress) as workers:
        workers.run(Nothing())  # starts the group: decoding is left to the head
        images, _ = ingest(config, "target")
        source = Pixels(config, resources, lambda text: None).source(images)
        ray.wait(list(source.blocks), num_returns=len(source.blocks), fetch_local=False)
        labels = np.zeros((len(images.table), NUM_FEATURES), np.float32)
        num_bytes = labels.nbytes + len(images.table) * config.input.height * config.input.width * 3
        job = ReadAll(source, ray.put(labels))
        found = []
        for _ in range(2):
            before = stores()
            workers.run(job)
            found.append([round((size - before[n]) / num_bytes, 2) for n, size in stores().items()])
    head = list(stores()).index(ray.get_runtime_context().get_node_id())
    return {
        name: [ratio for at, ratio in enumerate(ratios) if at != head]
        for name, ratios in zip(("first_read", "second_read"), found, strict=True)
    }


def stores() -> dict[str, int]:
    """Bytes that each node's object store has taken in since it started."""
    found = {}
    for node in ray.nodes():
        if node["Alive"]:
            stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False)
            found[node["NodeID"]] = int(stats.store_stats.cumulative_created_bytes)
    return found


def one_run(
    name: str, cluster: Cluster, settings: list[str], scratch: str, loss: Loss | None = None
) -> dict[str, Any]:
    config = load_config(None, [*SETTINGS, *settings, f"out={scratch}/{name.replace(' ', '-')}"])
    folder = RunFolder(config.out)
    events: list[dict[str, Any]] = []

    def record(event: dict[str, Any]) -> None:
        events.append(event)
        if loss is not None:
            loss.watch(event)

    progress = Progress(record, quiet=True)
    started = time.monotonic()
    adaptation = Adaptation(config, folder, place(config.ray, config.common_batch), progress)
    with ThreadPoolExecutor(1) as pool:
        adapting = pool.submit(adaptation.adapt)
        # Ray starts nodes from the main thread only.
        while loss is not None and not adapting.done():
            if loss.due.wait(timeout=0.2):
                loss.kill()
                break
        summary = adapting.result()
    return {
        "name": name,
        "seconds": round(time.monotonic() - started, 1),
        "nodes_of_tasks": nodes_of_tasks(),
        "groups": [event["workers"] for event in events if "starts" in event],
        "node_lost": loss is not None and loss.due.is_set(),
        "weights": digest(Path(config.out) / "iteration-01/checkpoint/weights.safetensors"),
        "mAP": summary["adapted"]["map"],
    }


def nodes_of_tasks() -> dict[str, int]:
    """On how many nodes tasks of each name were run."""
    places: dict[str, set[str]] = {}
    for task in list_tasks(limit=10_000, detail=True):
        if task.node_id:
            places.setdefault(task.name, set()).add(task.node_id)
    named = {"decode", "pseudo-labels", "evaluate", "RayTrainWorker.run_train_fn"}
    return {name: len(found) for name, found in sorted(places.items()) if name in named}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


if __name__ == "__main__":
    main()
