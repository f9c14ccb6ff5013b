"""Compile the label step's loops ahead: `python -m cluster.warm_up`, when an image is built.

What numba compiles is kept for this kind of CPU (`cluster.compiled.compiled_code_folder`). On
another kind a process compiles again, and keeps that too. Without the warm-up, the first labels on
each new node wait for it.
"""

import logging
from importlib.util import find_spec
from typing import Any

import numpy as np
import ray

from cluster.compiled import compiled_code_folder
from cluster.estimate import estimate_pseudo_labels
from cluster.ray_run import estimate_on_ray
from cluster.run import Threads
from daal.config import ClusterConfig

NUM_IDS, PER_ID, DIM = 40, 15, 16
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"dialect": "faiss"},
    {"camera_aware": True},
    {"source_weight": 0.1},
    {"search": "approximate"},
)


def warm_up() -> None:
    """Labels of a few drawn features, by every kind of search, by threads and by Ray's tasks.

    Arrays from Ray's object store are read-only, and numba compiles for those apart.
    """
    rng = np.random.default_rng(0)
    people_PD = rng.standard_normal((NUM_IDS, DIM))
    features_ND = np.repeat(people_PD, PER_ID, 0).astype(np.float32)
    features_ND += 0.2 * rng.standard_normal(features_ND.shape, np.float32)
    features_ND[-PER_ID:] = features_ND[0]  # exact copies are searched again
    camids_N = np.arange(len(features_ND)) % 3
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level=logging.ERROR)
    for variant in VARIANTS:
        if variant.get("search") == "approximate" and find_spec("faiss") is None:
            continue
        config = ClusterConfig(q=10.35, max_cluster_share=1, **variant)
        source_N = rng.random(len(features_ND)) if config.source_weight else None
        of_images: dict[str, Any] = {"camids_N": camids_N, "source_N": source_N}
        with Threads(1, "cpu") as runner:
            estimate_pseudo_labels(features_ND, config, runner=runner, num_blocks=2, **of_images)
        for num_blocks in (None, 2):
            estimate_on_ray(features_ND, config, num_blocks=num_blocks, **of_images)


if __name__ == "__main__":
    if compiled_code_folder() is None:
        raise SystemExit("error: no folder for compiled code can be written; set NUMBA_CACHE_DIR")
    warm_up()
