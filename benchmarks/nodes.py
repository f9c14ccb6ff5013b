"""One run over several nodes: where its work is done, and what travels between them.

    python -m benchmarks.nodes [--nodes 1 2 4] [--s3] [--lost] [--elastic] [--json]

All nodes are on this machine: Ray's test cluster starts separate processes, an object store and a
cache of images for each. On each number of nodes, four workers read all pixels twice, what a
training needs of the labels, and the bytes of all images. `first_read` and `second_read` say how
many bytes of pixels and labels each node's object store takes in, as a multiple of what there is: 1
if everything reaches it once, whatever its number of workers. Then follows a small adaptation of
drawn images (DDP by gloo). Weights are compared by their bytes.

`--s3`: the images and their store are in a bucket (moto, real HTTP). `image_gets` says how often an
image was fetched from there, `shard_gets` how often a shard was, for each node that keeps it.

`--lost`: on two nodes, one is killed during a training, and another comes; with `--s3` also while
images are read. `--elastic`: the same with 1 to 2 workers, which continue alone.
"""

import hashlib
import os
import sys
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import ray
from pyarrow import fs
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster
from ray.util.state import list_tasks

from benchmarks import small_run
from benchmarks.ray_nodes import ray_nodes
from benchmarks.s3_server import BUCKET, S3Server, s3_server
from benchmarks.tables import parse, parser_of, tell
from daal.drawn.domains import draw_domains
from daal.load_config import load_config
from pipelines.adapt import Adaptation
from pipelines.images import ingest as ingesting
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
    options.add_argument("--s3", action="store_true", help="images and stores are in a bucket")
    options.add_argument("--lost", action="store_true", help="a node is lost, another one comes")
    options.add_argument("--elastic", action="store_true", help="1 to 2 workers")
    given = parse(options)
    with (
        s3_server() if given.s3 else nullcontext() as server,
        small_run.scratch_folder() as scratch,
    ):
        rows = list(measure(given, Path(scratch), server))
    tell(given, "A run over nodes", rows)


def measure(given: Namespace, scratch: Path, server: S3Server | None) -> Iterator[dict[str, Any]]:
    world, where, caches = drawn(scratch, given.ids), str(scratch), scratch / "caches"
    if server:
        where = f"s3://{BUCKET}"
        fs.copy_files(f"{scratch}/images-{given.ids}", f"{where}/images")
        world = [f"{domain}.root={where}/images/{domain}" for domain in ("source", "target")]
    group = [*world, f"ray.num_workers={given.workers}"]
    for number in given.nodes:
        settings = [*group, f"store={where}/stores-{number}"]
        with nodes(number, given.workers // number, caches) as (cluster, _):
            before = Counter(server.requests()) if server else Counter[str]()
            num_cached = len(cached(caches))
            travelled = travel(settings, scratch)
            row = one_run(f"{number} nodes", cluster, settings, scratch)
            if server:
                gets = Counter(server.requests()) - before
                travelled |= fetched(gets, len(cached(caches)) - num_cached)
            yield row | travelled
    if given.lost:
        settings = [*group, f"store={where}/stores-lost"]
        with nodes(2, given.workers // 2, caches) as (cluster, _):
            if server:
                yield lost_while_reading(cluster, [*group, f"store={where}/stores"])
            yield one_run("lost", cluster, settings, scratch, Loss(cluster))
    if given.elastic:
        with nodes(2, 1, caches) as (cluster, _):
            settings = [
                *world, "ray.num_workers=2", "ray.min_workers=1", f"store={where}/stores-elastic",
                "adapt.epochs=30", "adapt.steps_per_epoch=20",  # not over before it is back
            ]  # fmt: skip
            yield one_run("elastic", cluster, settings, scratch, Loss(cluster, seconds_alone=90))


@contextmanager
def nodes(number: int, workers: int, caches: Path) -> Iterator[tuple[Cluster, list[str]]]:
    """A cluster with room for that number of workers on each node, each with a cache of its own."""
    kinds = [
        {"num_cpus": CPUS * workers, "env_vars": {"XDG_CACHE_HOME": f"{caches}/{at}"}}
        for at in range(number)
    ]
    with (
        patch.dict(os.environ, {"XDG_CACHE_HOME": f"{caches}/head"}),
        ray_nodes(kinds, STORE) as found,
    ):
        yield found


def cached(caches: Path) -> list[Path]:
    """The shards that nodes keep."""
    return list(caches.glob("*/*/*/shard-*.arrow"))


def fetched(gets: Counter[str], num_cached: int) -> dict[str, float]:
    images = [number for name, number in gets.items() if name.startswith(f"{BUCKET}/images/")]
    shards = [number for name, number in gets.items() if name.endswith(".arrow")]
    return {"image_gets": sum(images) / len(images), "shard_gets": sum(shards) / num_cached}


def lost_while_reading(cluster: Cluster, settings: list[str]) -> dict[str, Any]:
    """The target's images are read while a node is lost and another comes; and undisturbed."""
    config = load_config(None, [*SETTINGS, *settings])
    loss = Loss(cluster)

    def watch(done: int, of: int) -> None:
        if done > of // 4:
            loss.due.set()

    with patch.object(ingesting, "IMAGES_PER_SHARD", 8), ThreadPoolExecutor(1) as pool:
        reading = pool.submit(ingest, config, "target", watch)
        while not reading.done() and not loss.due.wait(timeout=0.01):
            pass
        loss.kill()
        was_reading = not reading.done()
        contents = [reading.result()[0].store.content]
        other = config.model_copy(update={"store": f"{config.store}-undisturbed"})
        contents.append(ingest(other, "target")[0].store.content)
    return {
        "name": "lost while reading",
        "node_lost": was_reading,
        "same_images": len(set(contents)) == 1,
    }


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
        params = node._ray_params
        self.cluster.remove_node(node, allow_graceful=False)
        time.sleep(self.seconds_alone)
        self.cluster.add_node(
            num_cpus=params.num_cpus, env_vars=params.env_vars, object_store_memory=STORE
        )


@dataclass(frozen=True)
class ReadAll:
    """A job that reads what a training reads, and no more."""

    source: ImageSource
    labels: Any

    def run(self, worker: Worker) -> None:
        self.source.store.take(np.arange(len(self.source.places_N)))
        PixelReader(self.source, worker.device, "decoded", 0)
        ray.get(self.labels)


@dataclass(frozen=True)
class Nothing:
    def run(self, worker: Worker) -> None:
        pass


def travel(settings: list[str], scratch: Path) -> dict[str, Any]:
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
    name: str, cluster: Cluster, settings: list[str], scratch: Path, loss: Loss | None = None
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
    # As many threads on any number of nodes: others would add up in another order.
    resources = place(config.ray, config.common_batch, threads=CPUS)
    adaptation = Adaptation(config, folder, resources, progress)
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
