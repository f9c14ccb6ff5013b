"""Numbers that aren't finite: nothing learns from them, and the step can be computed again."""

import io
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from rich.console import Console

from daal import checkpoint
from daal.config import Config
from daal.data.plan import Plan
from daal.errors import CheckpointError, TrainingDiverged
from daal.step import TrainBatch
from pipelines.images.ingest import ingest
from pipelines.images.pixels import Images, Pixels
from pipelines.run.folder import RunFolder
from pipelines.show.progress import Progress
from pipelines.training.diverged_step import keep_step, replay
from pipelines.training.fit import Trainer, class_labels
from pipelines.training.train_loop import build_network
from pipelines.workers.group import Workers
from pipelines.workers.session import ray_session


@pytest.mark.ray
def test_one_rank_meets_a_nan__all_stop_before_the_weights_change(
    ray_cluster: None, two_workers: Config
) -> None:
    config, clusters, bad_step = two_workers, 4, 2
    progress = Progress(console=Console(file=io.StringIO()))
    with ray_session(config.ray) as resources:
        source, target = (
            Images(table, ray.put(table))
            for table, _ in (ingest(config, "source"), ingest(config, "target"))
        )
        rows = target.rows("train")
        labels_N = np.full(len(target.table), -1)
        labels_N[rows] = np.arange(len(rows)) % clusters
        features_NC = np.random.default_rng(0).random((len(labels_N), 512), np.float32)
        known, source_rows = class_labels(source)
        plan = Plan(
            config.seed, 1, 1, 8, 8, source_rows, rows, labels_N[rows], None, steps_per_epoch=4
        )
        # The last image of the step is rank 1's.
        features_NC[plan.batch(bad_step).target[-1], 0] = math.nan
        labels = replace(
            known,
            pseudo_labels_N=labels_N,
            features_NC=features_NC,
            centroids_KC=np.eye(clusters, 512, dtype=np.float32),
        )
        with Workers(config, RunFolder(config.out), resources, progress) as workers:
            trainer = Trainer(
                config, workers, Pixels(config, resources, lambda text: None), progress
            )
            with pytest.raises(TrainingDiverged, match=f"at step {bad_step + 1} ") as raised:
                trainer._fit("adapt", config.adapt, 1, plan, source, target, labels, {})
    assert "daal replay" in str(raised.value)
    kept = [Path(config.out) / f"adapt/diverged-rank-{rank}" for rank in (0, 1)]
    assert replay(kept[1]).diverged and math.isnan(replay(kept[1]).terms["target"])
    assert not replay(kept[0]).diverged  # its own images were good
    of_ranks = [checkpoint.load(folder)[0] for folder in kept]
    untrained = build_network(config, labels, {}).state_dict()
    for name in ("backbone.conv1.weight", "target_head.fc.weight"):
        first, second = (tensors[f"network.{name}"] for tensors in of_ranks)
        assert torch.equal(first, second) and torch.isfinite(first).all()
        assert not torch.equal(first, untrained[name]), "the good steps before it were made"


def test_replay__names_the_layer_where_it_begins(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config.model_copy(update={"out": str(tmp_path)})
    network = build_network(config, _labels(), {})
    with torch.no_grad():
        network.backbone.layer2[0].conv1.weight[0] = math.inf
    images = torch.rand(4, 3, 32, 16)
    batch = TrainBatch(images, torch.tensor([0, 1]), torch.eye(3)[:2], torch.tensor([0, 1]))
    kept = keep_step(RunFolder(config.out), "pretrain/diverged-rank-0", network, [batch], config)
    found = replay(Path(kept))
    assert found.diverged and found.module == "backbone.layer2.0.conv1"
    printed = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "replay", kept], capture_output=True, text=True
    )
    assert printed.returncode == 0, printed.stderr
    answer = json.loads(printed.stdout)
    assert answer["first"] == "backbone.layer2.0.conv1" and answer["loss"]["source"] == "nan"
    (Path(kept) / "weights.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors has 7 bytes"):
        replay(Path(kept))


def _labels() -> object:
    from pipelines.training.train_loop import Labels

    return Labels(np.arange(2), 2, centroids_KC=np.eye(3, 512, dtype=np.float32))
