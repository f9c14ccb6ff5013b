"""Where Ray places the workers of runs on nodes with several GPUs. Needs no GPU.

    python -m benchmarks.logical_gpus [LAYOUT ...] [--run LAYOUT ...] [--json]

A layout such as 4+4 is a node for each number, and a head without GPUs, made by Ray's own test
cluster on this machine. Ray counts the GPUs that it is told of. The first table says, for each
layout, where the workers of a run on all of its GPUs are placed, as the run itself asks for it.
--run: two iterations on drawn images with a worker on each GPU, by CPU tensors and gloo. The second
table says on which nodes and GPUs the workers are, whether they are the same processes in the end,
which tasks ran beside them, and how many processes were started after the first iteration.
"""

import os
import sys
import time
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray
from ray.air._internal import device_manager
from ray.cluster_utils import Cluster
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.util.placement_group import placement_group_table, remove_placement_group
from ray.util.state import list_tasks, list_workers

from benchmarks import small_run
from benchmarks.ray_nodes import ray_nodes
from benchmarks.tables import parse, parser_of, tell
from daal.config import RayConfig
from daal.drawn.domains import draw_domains
from daal.load_config import load_config
from pipelines.adapt import Adaptation
from pipelines.run.folder import RunFolder
from pipelines.show.progress import Progress
from pipelines.workers import group as workers
from pipelines.workers.group import Worker
from pipelines.workers.resources import place
from pipelines.workers.turn_to_start import ask_for_room

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # for when this is a script

STORE = 100 * 2**20
PLACING_SECONDS = 900.0  # what can be placed is placed in a second, on a busy machine in some more
END_OF_FIRST = "iteration-01/evaluate"


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("layouts", nargs="*", help="default: 8 4+4 8+1 4+2, if there is no --run")
    options.add_argument("--run", nargs="*", default=[], help="layouts of whole runs")
    options.add_argument("--ids", type=int, default=18, help="drawn training identities a domain")
    given = parse(options)
    layouts = given.layouts or ([] if given.run else ["8", "4+4", "8+1", "4+2"])
    placed = [placement(layout) for layout in layouts]
    with small_run.scratch_folder() as scratch:
        images = Path(scratch) / "images"
        if given.run:
            draw_domains(images, num_train_ids=given.ids, num_test_ids=6, size=(64, 32))
        runs = [one_run(layout, images, Path(scratch)) for layout in given.run]
    for title, rows in (("Placement", placed), ("Runs", runs)):
        if rows:
            tell(given, title, rows)


def cluster_of(layout: str, dashboard: bool) -> AbstractContextManager[tuple[Cluster, list[str]]]:
    """A node for each number. There are more CPUs than GPUs, so that GPUs limit the workers."""
    kinds = [{"num_cpus": 2 * number, "num_gpus": number} for number in map(int, layout.split("+"))]
    return ray_nodes(kinds, STORE, dashboard)


def placement(layout: str) -> dict[str, Any]:
    with cluster_of(layout, dashboard=False) as (_, nodes):
        num_gpus = sum(map(int, layout.split("+")))
        config = RayConfig(num_workers=num_gpus, data_cpus=2)
        resources = place(config)
        started = time.monotonic()
        room = ask_for_room(config, resources)
        is_placed = room.wait(PLACING_SECONDS)
        seconds = time.monotonic() - started
        where = placement_group_table(room)["bundles_to_node_id"]
        on_nodes = Counter(where[bundle] for bundle in range(num_gpus) if is_placed)
        remove_placement_group(room)
    return {
        "GPUs": layout,
        "plan": str(resources),
        "placed": is_placed,
        "seconds": round(seconds, 1),
        "workers on nodes": "+".join(str(on_nodes[node]) for node in nodes),
    }


@dataclass
class OnCpus(TorchConfig):  # type: ignore[misc]
    """Workers that have GPUs by Ray's count, and compute on CPUs."""

    backend: str | None = "gloo"

    @property
    def backend_cls(self) -> Any:
        return _OnCpus


class _OnCpus(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_compute_on_cpus)
        super().on_start(worker_group, backend_config)


def _compute_on_cpus() -> None:
    # Ray Train's get_device asks this one, which it would choose by the GPUs that it counts.
    ray_device: Any = device_manager
    ray_device._torch_device_manager = ray_device.CPUTorchDeviceManager()


class Where:
    """A job: the node, the GPUs as Ray counts them, the process."""

    def run(self, worker: Worker) -> tuple[str, tuple[int, ...], int]:
        context = ray.get_runtime_context()
        gpus = tuple(int(number) for number in context.get_accelerator_ids()["GPU"])
        return context.get_node_id(), gpus, os.getpid()


def one_run(layout: str, images: Path, scratch: Path) -> dict[str, Any]:
    """Two iterations with a worker on each GPU."""
    num_gpus = sum(map(int, layout.split("+")))
    out = scratch / layout
    config = load_config(None, [
        *small_run.SETTINGS, f"source.root={images}/source", f"target.root={images}/target",
        f"out={out}", f"ray.num_workers={num_gpus}",
        "ray.images=decoded", "ray.stall_minutes=0", "input.height=32", "input.width=16",
        "augment.pad=2", "iterations=2", "pretrain.epochs=1", "pretrain.steps_per_epoch=2",
        f"pretrain.batch_source={2 * num_gpus}", "adapt.epochs=1", "adapt.steps_per_epoch=2",
        f"adapt.batch_source={num_gpus}", f"adapt.batch_target={num_gpus}",
    ])  # fmt: skip
    over = 0.0  # the first iteration

    def record(event: dict[str, Any]) -> None:
        nonlocal over
        if event["stage"] == END_OF_FIRST and "seconds" in event:
            over = time.time()

    progress = Progress(record, quiet=True)
    with (
        cluster_of(layout, dashboard=True) as (_, nodes),
        patch.object(workers, "TorchConfig", OnCpus),
    ):
        started = time.monotonic()
        resources = place(config.ray, config.common_batch)
        run = Adaptation(config, RunFolder(str(out)), resources, progress)
        with run.workers:
            first = run.workers.run(Where())
            run.algorithm_1()
            last = run.workers.run(Where())
        summary = run.finish()
        starts = [each.start_time_ms or 0 for each in list_workers(detail=True, limit=10_000)]
        tasks = Counter(task.name for task in list_tasks(limit=10_000, detail=True))
    on_nodes = Counter(node for node, _, _ in first)
    return {
        "GPUs": layout,
        "plan": str(resources),
        "workers on nodes": "+".join(str(on_nodes[node]) for node in nodes),
        "a GPU each": len({(node, gpus) for node, gpus, _ in first}) == num_gpus
        and all(len(gpus) == 1 for _, gpus, _ in first),
        "same processes": first == last,
        "started later": sum(start > 1000 * over for start in starts),
        "tasks": sorted(name for name in tasks if "." not in name),
        "mAP": summary["adapted"]["map"],
        "seconds": round(time.monotonic() - started, 1),
    }


if __name__ == "__main__":
    main()
