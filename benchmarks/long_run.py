"""What a long run holds on to, iteration by iteration: memory, object store, logs.

    python -m benchmarks.long_run [--iterations 10] [--json]

An adaptation of drawn images with 30 steps an iteration. Behind each iteration: private memory
(USS) of the driver and of its two workers together, what is in use of the object store, and the
bytes of the run's logs. Rising numbers are a leak; the last line is the rise from the third
iteration (caches are warm by then) to the last, as a share.
"""

import argparse
import io
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import psutil

import pipelines  # noqa: F401  makes its settings before Ray is imported

# isort: split
import ray
from ray._private.internal_api import node_stats
from rich.console import Console

from benchmarks.drawn import show
from daal.load_config import load_config
from daal.synthetic import draw_domains
from pipelines.adapt import Adaptation
from pipelines.placement import place
from pipelines.progress import Progress
from pipelines.run_folder import RunFolder

SETTINGS = [
    "source.published_counts=false", "target.published_counts=false", "network.backbone=resnet18",
    "network.weights=none", "network.identity_head=unit", "input.height=64", "input.width=32",
    "mixed_precision=false", "pretrain.epochs=1", "pretrain.batch_source=32", "adapt.epochs=1",
    "adapt.steps_per_epoch=30", "adapt.batch_source=16", "adapt.batch_target=16",
    "cluster.eps_rule=q", "cluster.q=3", "cluster.max_cluster_share=1", "cluster.k1=8",
    "soft_labels.form=normalized", "pretrain.optim.lr_new=0.01",
    "pretrain.optim.lr_backbone=0.01",
]  # fmt: skip
WARM = 3


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--iterations", type=int, default=10)
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(Path(scratch), given.iterations)
    rise = {
        name: round(rows[-1][name] / rows[WARM - 1][name] - 1, 3)
        for name in ("driver_MB", "workers_MB", "store_MB")
    }
    if given.json:
        print(json.dumps({"rows": rows, "rise": rise}))
    else:
        show("Held after each iteration", rows)
        print(f"from iteration {WARM} to the last: {rise}")


def measure(folder: Path, iterations: int) -> list[dict[str, Any]]:
    draw_domains(folder / "images", num_train_ids=60, num_test_ids=20, size=(64, 32))
    config = load_config(
        None,
        [
            *SETTINGS, f"source.root={folder}/images/source", f"iterations={iterations}",
            f"target.root={folder}/images/target", f"out={folder}/run",
        ],
    )  # fmt: skip
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, logging_level=logging.ERROR,
        log_to_driver=False,
    )  # fmt: skip
    run, rows = RunFolder(config.out), list[dict[str, Any]]()

    def record(event: dict[str, Any]) -> None:
        run.append("metrics.jsonl", event)
        # The scores are the last figures of an iteration.
        if event["stage"].startswith("iteration-") and "rank1" in event:
            rows.append({"name": event["stage"], **held(folder / "run")})

    progress = Progress(record, Console(file=io.StringIO()))
    try:
        Adaptation(config, run, place(config.ray), progress).adapt()
    finally:
        ray.shutdown()
    return rows


def held(out: Path) -> dict[str, Any]:
    processes = _ray_processes()
    workers = [it for it in processes if it.cmdline()[0].startswith("ray::RayTrainWorker")]
    return {
        "driver_MB": round(psutil.Process().memory_full_info().uss / 1e6, 1),
        "workers_MB": round(sum(worker.memory_full_info().uss for worker in workers) / 1e6, 1),
        "processes": len(processes),
        "store_MB": round(_store_bytes() / 1e6, 1),
        "logs_kB": round((out / "metrics.jsonl").stat().st_size / 1e3, 1),
    }


def _store_bytes() -> int:
    (node,) = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False)
    return int(stats.store_stats.object_store_bytes_used)


def _ray_processes() -> list[psutil.Process]:
    """Ray's processes below this one."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::")
    ]


if __name__ == "__main__":
    main()
