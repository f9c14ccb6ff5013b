"""Sections of benchmarks/gpu_first.py on features: pseudo-labels, evaluation, cuML's DBSCAN.

Measured by `benchmarks.pseudo_labels` and `benchmarks.evaluation`, which have the baselines.
"""

import time
from argparse import Namespace

import numpy as np

from benchmarks import evaluation as scores
from benchmarks import pseudo_labels
from benchmarks.gpu_support import Bench, drawn_features
from cluster.estimate import PseudoLabels
from cluster.run import imports
from daal.config import ClusterConfig

MANY = 100_000  # images: one measurement is enough
MSMT17, LABEL_SECONDS = (32_621, 2048), 1.0
CONFIG = ClusterConfig(q=10.35)  # the same number of neighbours at any size


def labels(bench: Bench) -> None:
    """Baseline: half of all products of features, fp32, on the same device."""
    for num, dim in bench.points:
        name = f"pseudo-labels {num} x {dim}"
        if bench.is_late(name):
            continue
        row = pseudo_labels.measure(num, _given(bench, dim, repeats=3 if num < MANY else 1))
        goal = {}
        if (num, dim) == MSMT17:
            held = row["seconds"] <= LABEL_SECONDS
            goal = {"goal": f"{LABEL_SECONDS:g} s", "reached": held}
        keys = ("seconds", "product_s", "eps", "num_clusters", "outlier_share")
        bench.add(name, row["ratio"], **{key: row[key] for key in keys}, **goal)
        for stage, took in row["stages"].items():
            bench.add(f"  {stage}", took["wall"] / row["product_s"], seconds=took["wall"],
                      cpu_s=took["cpu"], tasks=took["num_tasks"])  # fmt: skip


def evaluation(bench: Bench) -> None:
    """Baseline: the bare product of queries and gallery."""
    sizes = bench.sizes
    given = Namespace(queries=sizes.queries, gallery=sizes.gallery, dim=sizes.dim, repeats=3,
                      device=bench.device.type, json=True)  # fmt: skip
    row = scores.measure("usable model", *scores.draw(given, signal=1.0), given)
    bench.add(
        f"evaluation {sizes.queries} x {sizes.gallery} x {sizes.dim}", row["ratio"],
        seconds=row["seconds"], product_s=row["baseline_s"], map=row["map"],
    )  # fmt: skip


def cuml(bench: Bench) -> None:
    """cuML's DBSCAN really run, in a whole estimate, against SciPy's components."""
    if not (bench.on_gpu and imports("cuml")):
        bench.add("cuML", left_out="cuml is not installed" if bench.on_gpu else "no GPU")
        return
    num, dim = bench.points[0]
    features, given = drawn_features(num, dim).features, _given(bench, dim, repeats=1)
    found: dict[str, PseudoLabels] = {}
    took = {}
    for name in ("cuml", "components", "cuml", "components"):  # the first two warm up
        start = time.perf_counter()
        config = CONFIG.model_copy(update={"backend": name})
        found[name] = pseudo_labels.estimate(features, config, given)
        took[name] = time.perf_counter() - start
    one, other = found["cuml"], found["components"]
    bench.add(
        f"estimate by cuML's DBSCAN, {num} images",
        took["cuml"] / took["components"],
        ok=one.eps == other.eps and np.array_equal(one.labels, other.labels),
        seconds=took["cuml"],
        components_s=took["components"],
        notes=" ".join(one.notes),
    )


def _given(bench: Bench, dim: int, repeats: int) -> Namespace:
    return Namespace(dim=dim, repeats=repeats, ray=False, no_baseline=False, json=True,
                     device=bench.device.type)  # fmt: skip
