"""Sections of benchmarks/gpu_first.py on features: pseudo-labels, evaluation, cuML's DBSCAN."""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_support import Bench, Drawn, drawn_features
from cluster.dbscan import cuml_available
from cluster.estimate import PseudoLabels, estimate_pseudo_labels
from cluster.run import Threads
from cluster.search_on_device import fp32_products
from daal.config import ClusterConfig
from daal.evaluation import EvaluationResult, evaluate

ROWS = 8192
MANY = 100_000  # images: one measurement is enough


def estimate(bench: Bench, drawn: Drawn, device: str, **changes: Any) -> PseudoLabels:
    """The rule q gives the same number of neighbours at any size."""
    config = ClusterConfig(q=10.35, **changes)
    with Threads(num_threads=os.cpu_count(), device=device) as runner:
        return estimate_pseudo_labels(drawn.features, config, runner=runner)


def device_name(bench: Bench) -> str:
    """To torch "cpu:0" is the CPU; to the stages it is a device that isn't called cpu."""
    return "cuda" if bench.on_gpu else "cpu:0"


def labels(bench: Bench) -> None:
    """Baseline: half of all products of features (N^2 D operations), fp32, on the same device."""
    estimate(bench, drawn_features(1000, 32), device_name(bench))  # compiles, or loads, kernels
    for number, (num, dim) in enumerate(bench.points):
        name = f"pseudo-labels {num} x {dim}"
        if bench.is_late(name):
            continue
        drawn = drawn_features(num, dim)
        product = half_product(bench, drawn)
        runs = []
        for _ in range(3 if num < MANY else 1):
            product_s, start = bench.timed(product), time.perf_counter()
            found = estimate(bench, drawn, device_name(bench))
            runs.append((time.perf_counter() - start, product_s, found))
        wall, product_s, found = sorted(runs, key=lambda run: run[0])[len(runs) // 2]
        bench.add(
            name, wall / product_s, seconds=wall, product_s=product_s, eps=found.eps,
            clusters=found.num_clusters, outlier_share=found.outlier_share,
        )  # fmt: skip
        for stage, took in found.stages.items():
            bench.add(
                f"  {stage}", took.wall / product_s, seconds=took.wall, cpu_s=took.cpu,
                tasks=took.num_tasks,
            )  # fmt: skip
        if number == 0:
            bench.add("  labels equal the CPU's", ok=same(found, estimate(bench, drawn, "cpu")))


def same(ours: PseudoLabels, theirs: PseudoLabels) -> bool:
    return ours.eps == theirs.eps and np.array_equal(ours.labels, theirs.labels)


def half_product(bench: Bench, drawn: Drawn) -> Callable[[], None]:
    features_ND = torch.from_numpy(drawn.features).to(bench.device)

    def product() -> None:
        with fp32_products():
            for row in range(0, len(features_ND), ROWS):
                for column in range(row, len(features_ND), ROWS):
                    features_ND[row : row + ROWS] @ features_ND[column : column + ROWS].T

    product()  # warm
    return product


def evaluation(bench: Bench) -> None:
    """Baseline: the bare product of queries and gallery, in fp64 as `evaluate` takes it."""
    sizes = bench.sizes
    num_queries, num_gallery = sizes.queries, sizes.gallery
    drawn = drawn_features(num_queries + num_gallery, sizes.dim)
    arrays = [torch.from_numpy(array).to(bench.device) for array in drawn]
    query = [array[:num_queries] for array in arrays]
    gallery = [array[num_queries:] for array in arrays]
    query_QD = query[0].double()

    def product() -> None:
        for row in range(0, num_gallery, ROWS):
            query_QD @ gallery[0][row : row + ROWS].double().T

    def ours() -> EvaluationResult:
        return evaluate(*query, *gallery)

    took = bench.seconds({"ours": ours, "product": product}, calls=1)
    bench.add(
        f"evaluation {num_queries} x {num_gallery} x {sizes.dim}",
        took["ours"] / took["product"],
        seconds=took["ours"],
        product_s=took["product"],
        peak_gb=bench.peak_gb(ours),
        map=ours().map,
    )


def cuml(bench: Bench) -> None:
    """cuML's DBSCAN really run, in a whole estimate, against SciPy's components."""
    if not cuml_available():
        bench.add("cuML", left_out="cuml is not installed" if bench.on_gpu else "no GPU")
        return
    drawn = drawn_features(*bench.points[0])
    found, took = {}, {}
    for name in ("cuml", "components", "cuml", "components"):  # the first two warm up
        start = time.perf_counter()
        found[name] = estimate(bench, drawn, "cuda", backend=name)
        took[name] = time.perf_counter() - start
    bench.add(
        f"estimate by cuML's DBSCAN, {len(drawn.pids)} images",
        took["cuml"] / took["components"],
        ok=same(found["cuml"], found["components"]),
        seconds=took["cuml"],
        components_s=took["components"],
        clusters=found["cuml"].num_clusters,
        notes=" ".join(found["cuml"].notes),
    )
