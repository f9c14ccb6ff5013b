"""The settings of a run of seconds, and a run that was brought to its end with them."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from daal import checkpoint
from daal.config import Config
from daal.load_config import apply_overrides, check_config, load_config
from daal.nn.network import DaalNetwork
from pipelines.show.progress import Progress


@dataclass(frozen=True)
class FinishedRun:
    """Its settings, and what its command has written to standard output and error."""

    config: Config
    stdout: str
    stderr: str

    @property
    def out(self) -> Path:
        return Path(self.config.out)


def tiny(world: Path, out: Path, *settings: str) -> Config:
    """A run of seconds on the tiny world: ResNet-18, one epoch, one worker."""
    return load_config(None, [
        f"source.root={world}/source", f"target.root={world}/target", f"out={out}",
        "input.height=32", "input.width=16", "augment.pad=2", "ray.num_workers=1",
        "ray.threads_per_worker=1",  # the same bits on clusters that count other CPUs
        "network.backbone=resnet18", "network.weights=none", "network.identity_head=unit",
        "pretrain.epochs=1", "pretrain.batch_source=16", "pretrain.optim.lr_new=0.01",
        "pretrain.optim.lr_backbone=0.01",
        "adapt.epochs=1", "adapt.steps_per_epoch=3", "adapt.batch_source=8",
        "adapt.batch_target=8", "iterations=1",
        "cluster.q=3", "cluster.max_cluster_share=1", "cluster.k1=8",
        "mixed_precision=false", *settings,
    ])  # fmt: skip


def changed(config: Config, *settings: str) -> Config:
    """The same run with other settings."""
    return check_config(apply_overrides(config.model_dump(), list(settings)))


def silent(*given: Any) -> Progress:
    """Progress that nobody sees."""
    return Progress(*given, console=Console(file=io.StringIO()))


def recipe_of(config: Config, file: Path) -> Path:
    """The file, which has the configuration now."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return file


def save_model(folder: Path, seed: int = 0) -> Path:
    """The folder, which has a whole checkpoint of a small model with random weights now."""
    config = load_config(None, ["input.height=32", "input.width=16", "network.backbone=resnet18",
                                "network.weights=none", "mixed_precision=false"])  # fmt: skip
    torch.manual_seed(seed)
    network = DaalNetwork(config.network)
    checkpoint.save(folder, network.state_dict(), {"config": config.model_dump(mode="json")})
    return folder
