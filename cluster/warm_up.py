"""Compile the label step's loops ahead: `python -m cluster.warm_up`, when an image is built.

What numba compiles is kept (`cluster.blocks.compiled_code_folder`) for this kind of CPU. On another
kind a process compiles again, and keeps that too. Without the warm-up, the first labels on each
new node wait for it.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import is_dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy.sparse import issparse

from cluster.blocks import compiled_code_folder
from cluster.estimate import estimate_pseudo_labels
from cluster.runner import Threads
from daal.config import ClusterConfig

NUM_IDS, PER_ID, DIM = 40, 15, 16
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"dialect": "faiss"},
    {"camera_aware": True},
    {"source_weight": 0.1},
    {"search": "approximate"},
)


class _AsTasks(Threads):
    """Stages get their arrays as in a Ray task: read-only, for which numba compiles apart."""

    def share(self, value: Any) -> Any:
        return _read_only(value)

    def submit(
        self, stage: str, function: Callable[..., Any], *arguments: Any, **options: Any
    ) -> Any:
        def on_read_only(*values: Any) -> Any:
            return function(*map(_read_only, values))

        return super().submit(stage, on_read_only, *arguments, **options)


def warm_up() -> None:
    """Labels of a few drawn features, by every kind of search and as both runners find them."""
    rng = np.random.default_rng(0)
    people_PD = rng.standard_normal((NUM_IDS, DIM))
    features_ND = np.repeat(people_PD, PER_ID, 0).astype(np.float32)
    features_ND += 0.2 * rng.standard_normal(features_ND.shape, np.float32)
    features_ND[-PER_ID:] = features_ND[0]  # exact copies have loops of their own
    features_ND.flags.writeable = False  # as they come from the object store
    camids_N = np.arange(len(features_ND)) % 3
    for variant in VARIANTS:
        if variant.get("search") == "approximate" and find_spec("faiss") is None:
            continue
        config = ClusterConfig(q=10.35, max_cluster_share=1, **variant)
        source_N = rng.random(len(features_ND)) if config.source_weight else None
        for kind in (Threads, _AsTasks):
            with kind(1, "cpu") as runner:
                estimate_pseudo_labels(
                    features_ND, config, camids_N=camids_N, source_N=source_N, runner=runner,
                    num_blocks=2,
                )  # fmt: skip


def _read_only(value: Any) -> Any:
    """The value with read-only views of its arrays."""
    if isinstance(value, np.ndarray):
        view = value.view()
        view.flags.writeable = False
        return view
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_read_only, value))
    if isinstance(value, list | tuple):
        return type(value)(map(_read_only, value))
    if issparse(value) or is_dataclass(value):
        other = copy(value)
        for name, part in vars(value).items():
            object.__setattr__(other, name, _read_only(part))
        return other
    return value


if __name__ == "__main__":
    if compiled_code_folder() is None:
        raise SystemExit("error: no folder for compiled code can be written; set NUMBA_CACHE_DIR")
    warm_up()
