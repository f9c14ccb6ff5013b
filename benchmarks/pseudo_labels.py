"""What an estimate of pseudo-labels costs, stage by stage, beside the bare product of features.

    python -m benchmarks.pseudo_labels                        12,936 and 32,621 x 2,048, threads
    python -m benchmarks.pseudo_labels --ray --dim 64 --num 100000 1000000
    python -m benchmarks.pseudo_labels --num 4000 --dense     beside the reference's algorithm

The baselines are one fp32 matrix product over half of the pairs (N^2 d floating-point operations,
all cores) by NumPy's BLAS and one by torch, with --device cuda by torch there, measured in turn
with the estimate; with --dense also the dense algorithm (`benchmarks.dense_labels`), given eps.
Features are drawn: identities of 10 to 25 images in 48 dimensions, a shift for each of 8 cameras,
rotated into `--dim` dimensions, with noise; or they are those of a .npy file (`--features`).
Memory is counted in proportional shares (PSS), so that what processes share counts once. `--json`
prints one object instead of the tables.
"""

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from sklearn.metrics import adjusted_rand_score

from benchmarks.dense_labels import dense_labels
from benchmarks.gpu_support import drawn_features
from benchmarks.tables import parse, parser_of, say, tell
from cluster.estimate import PseudoLabels, estimate_pseudo_labels
from cluster.run import Threads, blocks_for
from daal.config import ClusterConfig

Floats = npt.NDArray[np.float32]


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("--num", type=int, nargs="+", default=[12_936, 32_621], help="images")
    options.add_argument("--dim", type=int, default=2048)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--ray", action="store_true", help="as Ray tasks, many for any size")
    options.add_argument("--device", default=None, help="cpu or cuda (default: cuda if it's there)")
    options.add_argument("--features", help="a .npy file, instead of drawn ones")
    options.add_argument("--dense", action="store_true", help="measure the dense algorithm too")
    options.add_argument("--no-baseline", action="store_true", help="leave the product out")
    given = parse(options)

    warm_up(given)
    rows = []
    for num_images in given.num:
        rows.append(measure(num_images, given))
        if not given.json:
            tell_row(given, rows[-1])
    if given.json:
        say(given, json.dumps({"rows": rows}))


def tell_row(given: argparse.Namespace, row: dict[str, Any]) -> None:
    """Stage by stage, and then the whole."""
    stages = [{"stage": name, **took} for name, took in row["stages"].items()]
    tell(given, row["name"], stages)
    tell(given, "of these", [{name: row[name] for name in row if name not in ("name", "stages")}])


def warm_up(given: argparse.Namespace) -> None:
    """Compile, or load what is compiled; start Ray and its workers."""
    config = ClusterConfig(q=10.35)
    if given.ray:
        import logging

        import ray

        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(address="local", logging_level=logging.ERROR, log_to_driver=False)
    features = drawn_features(6000, given.dim).features
    for some in (features[:3000], features):
        estimate(some, config, given)


def estimate(features: Floats, config: ClusterConfig, given: argparse.Namespace) -> PseudoLabels:
    if given.ray:
        import ray

        from cluster.ray_run import RayTasks, estimate_on_ray, on_free_gpus

        num_blocks = len(blocks_for(RayTasks(os.cpu_count() or 1), len(features)))
        has_gpu = given.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
        return estimate_on_ray(
            features, config, num_blocks=num_blocks, on_gpus=on_free_gpus if has_gpu else None,
            on_progress=None if given.json else show_progress,
        )  # fmt: skip
    with Threads(device=given.device) as runner:
        return estimate_pseudo_labels(features, config, runner=runner)


def show_progress(stage: str, num_done: int, num_tasks: int) -> None:
    if sys.stderr.isatty() or num_done == num_tasks:
        print(f"  {stage}: {num_done} of {num_tasks} tasks", file=sys.stderr)


def measure(num_images: int, given: argparse.Namespace) -> dict[str, Any]:
    config = ClusterConfig(q=10.35)
    features = given_features(num_images, given)
    runs = []
    for _ in range(given.repeats):
        product = None if given.no_baseline else product_seconds(features, given.device)
        by_torch = None
        if not given.no_baseline and given.device != "cuda":
            by_torch = product_seconds(torch.from_numpy(features), given.device)
        before = shared_memory_bytes()
        with watched_memory() as peak:
            start = time.perf_counter()
            found = estimate(features, config, given)
            wall = time.perf_counter() - start
        runs.append((wall, product, by_torch, found, peak[0] - before, peak[0]))
    # All figures are those of the repeat with the median time, except the largest peaks.
    wall, product, by_torch, found, _, _ = sorted(runs, key=lambda run: run[0])[len(runs) // 2]
    searching = [stage for name, stage in found.stages.items() if name.startswith("neighbours")]
    search = max(stage.end for stage in searching) - min(stage.start for stage in searching)
    dense = dense_figures(features, found, config, wall) if given.dense else {}
    return {
        "name": f"pseudo-labels, {len(features)} x {features.shape[1]}",
        "num": len(features),
        "seconds": wall,
        "product_s": product,
        "ratio": None if product is None else wall / product,
        "torch_product_s": by_torch,
        "torch_ratio": None if by_torch is None else wall / by_torch,
        **dense,
        "search_s": search,
        "rest_s": wall - search,
        "peak_above_features_gb": max(above for *_, above, _ in runs) / 1e9,
        "peak_gb": max(total for *_, total in runs) / 1e9,
        "eps": found.eps,
        "num_clusters": found.num_clusters,
        "outlier_share": found.outlier_share,
        "stages": {name: vars(stage) for name, stage in found.stages.items()},
    }


def given_features(num_images: int, given: argparse.Namespace) -> Floats:
    if given.features is None:
        return drawn_features(num_images, given.dim).features
    features = np.load(given.features)[:num_images]
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def dense_figures(
    features: Floats, found: PseudoLabels, config: ClusterConfig, wall: float
) -> dict[str, float]:
    """What the dense algorithm takes, and how many pairs of labels agree."""
    start = time.perf_counter()
    labels = dense_labels(features, found.eps, config.k1, config.k2, config.min_samples)
    seconds = time.perf_counter() - start
    same = adjusted_rand_score(labels, found.labels)
    return {"dense_s": seconds, "dense_ratio": seconds / wall, "ari_with_dense": same}


def product_seconds(features: Floats | torch.Tensor, device: str | None) -> float:
    if device == "cuda":
        return _product_seconds_on_gpu(np.asarray(features))
    start = time.perf_counter()
    for row in range(0, len(features), 1024):
        features[row : row + 1024] @ features[row:].T
    return time.perf_counter() - start


def _product_seconds_on_gpu(features: Floats) -> float:
    """By torch, whose products are in full fp32 unless told otherwise."""
    features_ND = torch.from_numpy(features).cuda()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    features_ND[:8192] @ features_ND[:8192].T  # to warm up
    begin.record()
    for row in range(0, len(features_ND), 8192):
        features_ND[row : row + 8192] @ features_ND[row:].T
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


# ---- Memory of this process and its children ----------------------------------------------


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """The largest PSS seen until the block ends, sampled with 2 % of a core at most."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        spent = 0.0
        while not done.wait(max(0.1, 50 * spent)):
            start = time.thread_time()
            peak[0] = max(peak[0], shared_memory_bytes())
            spent = time.thread_time() - start

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def shared_memory_bytes() -> int:
    """PSS of this process and all its descendants."""
    total, this = 0, psutil.Process()
    for process in [this, *this.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # gone
            total += process.memory_full_info().pss
    return total


if __name__ == "__main__":
    main()
