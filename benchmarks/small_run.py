"""A run of minutes on drawn images, in a process of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from daal.drawn.domains import draw_domains

SETTINGS = [
    "network.backbone=resnet18",
    "network.weights=none", "network.identity_head=unit", "input.height=64", "input.width=32",
    "mixed_precision=false", "pretrain.batch_source=32", "adapt.batch_source=16",
    "adapt.batch_target=16", "cluster.q=3", "cluster.max_cluster_share=1",
    "cluster.k1=8", "pretrain.optim.lr_new=0.01",
    "pretrain.optim.lr_backbone=0.01",
]  # fmt: skip


def scratch_folder(prefix: str | None = None) -> "tempfile.TemporaryDirectory[str]":
    """A folder for Ray's processes, some of which still write after their driver has ended."""
    return tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)


def settings_in(folder: Path, num_train_ids: int, *more: str) -> list[str]:
    """Arguments of `daal adapt` without out=. Draws images; a third as many people are tested."""
    images, recipe = folder / "images", folder / "small.yaml"
    draw_domains(
        images, num_train_ids=num_train_ids, num_test_ids=num_train_ids // 3, size=(64, 32)
    )
    recipe.write_text("{}\n")
    roots = [f"source.root={images}/source", f"target.root={images}/target"]
    return [str(recipe), *SETTINGS, *more, *roots]


def start(settings: list[str], out: Path, **environment: str) -> "subprocess.Popen[bytes]":
    """Start the command for the run folder `out`; its output goes to a file beside it."""
    with open(f"{out}.log", "a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", "adapt", *settings, f"out={out}"],
            stdout=log, stderr=log, env=os.environ | environment,
        )  # fmt: skip
