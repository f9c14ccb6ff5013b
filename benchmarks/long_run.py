"""What a long run holds on to, iteration by iteration: memory, object store, logs.

    python -m benchmarks.long_run [--iterations 10] [--json]

An adaptation of drawn images with 30 steps an iteration. After each iteration: private memory
(USS) of the driver and of its two workers together, how much of the object store is in use, and the
bytes of the run's logs. Rising numbers are a leak. The last line is the rise from the third
iteration (caches are warm by then) to the last, as a share.
"""

import logging
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private.internal_api import node_stats

from benchmarks.small_run import scratch_folder, settings_in
from benchmarks.tables import parse, parser_of, say, tell
from daal.load_config import load_config
from pipelines.adapt import Adaptation
from pipelines.run.folder import RunFolder
from pipelines.show.progress import Progress
from pipelines.workers.resources import place

EACH = ["pretrain.epochs=1", "adapt.epochs=1", "adapt.steps_per_epoch=30"]
WARM = 3


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("--iterations", type=int, default=10)
    given = parse(options)
    with scratch_folder() as scratch:
        rows = measure(Path(scratch), given.iterations)
    rise = {
        name: round(rows[-1][name] / rows[WARM - 1][name] - 1, 3)
        for name in ("driver_MB", "workers_MB", "store_MB")
    }
    tell(given, "Held after each iteration", rows, rise=rise)
    if not given.json:
        say(given, f"from iteration {WARM} to the last: {rise}")


def measure(folder: Path, iterations: int) -> list[dict[str, Any]]:
    _, *settings = settings_in(folder, 60, *EACH, f"iterations={iterations}")
    config = load_config(None, [*settings, f"out={folder}/run"])
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

    progress = Progress(record, quiet=True)
    try:
        Adaptation(config, run, place(config.ray, config.common_batch), progress).adapt()
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
