"""What workers compute together: as one process, and never learning from what isn't finite."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from programs import python
from tiny_run import silent, tiny

from daal import checkpoint
from daal.config import Config
from daal.data.plan import Plan
from daal.errors import CheckpointError, TrainingDiverged
from daal.optimizer import make_optimizer, set_learning_rate
from daal.precision import mixed_precision
from daal.step import TrainBatch, train_step
from pipelines.images.ingest import Images, ingest
from pipelines.images.pixels import Pixels, decode_rows
from pipelines.images.stream import FedBatch
from pipelines.run.folder import RunFolder
from pipelines.training.diverged_step import keep_step, replay
from pipelines.training.fit import Trainer, class_labels
from pipelines.training.train_batch import BatchMaker, Labels
from pipelines.training.train_loop import build_network
from pipelines.workers.group import Workers
from pipelines.workers.session import ray_session

CLUSTERS = 5


@dataclass(frozen=True)
class Pair:
    """Two workers of one group, and what they train on."""

    config: Config
    trainer: Trainer
    source: Images
    target: Images
    labels: Labels

    def plan(self, steps):
        rows = self.target.rows("train")
        source_rows = class_labels(self.source)[1]
        labels = self.labels.pseudo_labels_N[rows]
        return Plan(
            self.config.seed, 1, 1, 8, 8, source_rows, rows, labels, None, steps_per_epoch=steps
        )


@pytest.fixture(scope="module")
def pair(ray_cluster, tiny_world, tmp_path_factory):
    config = tiny(
        tiny_world, tmp_path_factory.mktemp("pair") / "run", "ray.num_workers=2",
        "network.attention.zero_init=false",
        "adapt.optim.lr_backbone=0.01", "adapt.optim.lr_new=0.01",
        # Training itself blows up differences of rounding, tenfold a step here.
        "adapt.steps_per_epoch=1",
    )  # fmt: skip
    progress = silent()
    with ray_session(config.ray) as resources:
        source, target = (ingest(config, domain)[0] for domain in ("source", "target"))
        features = np.random.default_rng(0).standard_normal((len(target.table), 512))
        features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
        labels_N = np.full(len(features), -1)
        rows = target.rows("train")
        labels_N[rows] = np.arange(len(rows)) % CLUSTERS
        labels = replace(
            class_labels(source)[0],
            pseudo_labels_N=labels_N,
            features_NC=features,
            centroids_KC=np.stack([features[labels_N == k].mean(0) for k in range(CLUSTERS)]),
        )
        with Workers(config, RunFolder(config.out), resources, progress) as workers:
            pixels = Pixels(config, resources, lambda text: None)
            trainer = Trainer(config, workers, pixels, progress)
            yield Pair(config, trainer, source, target, labels)


@pytest.mark.ray
def test_two_workers__equal_one_process_on_the_same_batches(pair):
    """DDP averages gradients, and BatchNorm is over both workers' 8 images: one batch of 16."""
    config, labels, fit = pair.config, pair.labels, pair.config.adapt
    trained = pair.trainer.adapt(
        "ddp", 1, pair.source, pair.target,
        labels.features_NC[pair.target.rows("train")], labels.pseudo_labels_N[:, None], start={},
    )  # fmt: skip

    maker = BatchMaker(labels, config, 1, torch.device("cpu"))
    network = build_network(config, labels, {}).to(memory_format=torch.channels_last).train()
    untrained = {n: p.detach().clone().numpy() for n, p in network.named_parameters()}
    optimizer = make_optimizer(network, fit.optim)
    set_learning_rate(optimizer, fit, 0, 1)
    whole = pair.plan(steps=1).batch(0)
    images = np.concatenate([
        decode_rows(pair.source.store, whole.source, config.input),
        decode_rows(pair.target.store, whole.target, config.input),
    ])  # fmt: skip
    fed = FedBatch(0, torch.tensor(images), whole.source, whole.target)
    batch = maker.on_device(maker.on_host(fed, epoch=0))
    train_step(
        network, [batch], optimizer, config.loss, torch.zeros(()), lambda flag: None,
        mixed_precision(torch.device("cpu"), False),
    )  # fmt: skip
    alone = dict(network.named_parameters())
    assert set(alone) <= set(trained)
    for name, parameter in alone.items():
        assert np.allclose(trained[name], parameter.detach().numpy(), atol=1e-5), name
        assert not np.array_equal(trained[name], untrained[name]), f"{name} was never trained"


@pytest.mark.ray
def test_one_rank_meets_a_nan__all_stop_before_the_weights_change(pair):
    bad_step = 2
    plan = pair.plan(steps=4)
    features_NC = pair.labels.features_NC.copy()
    features_NC[plan.batch(bad_step).target[-1], 0] = math.nan  # of the step's last image: rank 1's
    labels = replace(pair.labels, features_NC=features_NC)
    given = 1, plan, pair.source, pair.target, ray.put(labels), {}
    with pytest.raises(TrainingDiverged, match=f"at step {bad_step + 1} ") as raised:
        pair.trainer._fit("adapt", pair.config.adapt, *given)
    assert "daal replay" in str(raised.value)
    kept = [Path(pair.config.out) / f"adapt/diverged-rank-{rank}" for rank in (0, 1)]
    assert replay(kept[1]).diverged and math.isnan(replay(kept[1]).terms["target"])
    assert not replay(kept[0]).diverged  # its own images were good
    of_ranks = [checkpoint.load(folder)[0] for folder in kept]
    untrained = build_network(pair.config, labels, {}).state_dict()
    for name in ("backbone.conv1.weight", "target_head.fc.weight"):
        first, second = (tensors[f"network.{name}"] for tensors in of_ranks)
        assert torch.equal(first, second) and torch.isfinite(first).all()
        assert not torch.equal(first, untrained[name]), "the good steps before it were made"


def test_replay__names_the_layer_where_it_begins(tiny_config, tmp_path):
    labels = Labels(np.arange(2), 2, centroids_KC=np.eye(3, 512, dtype=np.float32))
    network = build_network(tiny_config, labels, {})
    with torch.no_grad():
        network.backbone.layer2[0].conv1.weight[0] = math.inf
    images = torch.rand(4, 3, 32, 16)
    batch = TrainBatch(images, torch.tensor([0, 1]), torch.eye(3)[:2], torch.tensor([0, 1]))
    folder = RunFolder(str(tmp_path))
    kept = keep_step(folder, "pretrain/diverged-rank-0", network, [batch], tiny_config)
    printed = python("-m", "pipelines.cli", "replay", kept)
    assert printed.returncode == 0, printed.stderr
    answer = json.loads(printed.stdout)
    assert answer["first"] == "backbone.layer2.0.conv1" and answer["loss"]["source"] == "nan"
    (Path(kept) / "weights.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is damaged"):
        replay(Path(kept))
