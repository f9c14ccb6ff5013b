"""The same seed and number of workers give the same bits, whatever dies on the way."""

import json

import numpy as np
import pytest
import torch
from tiny_run import changed, silent

from daal.nn.network import DaalNetwork
from pipelines.images.ingest import ingest
from pipelines.images.pixels import Pixels
from pipelines.run.folder import RunFolder, entry_of
from pipelines.training.extract import extract
from pipelines.training.fit import Trainer
from pipelines.workers.group import Workers
from pipelines.workers.planned_faults import FAULTS
from pipelines.workers.session import ray_session

pytestmark = pytest.mark.ray


# Three epochs of six steps, a checkpoint after each.
AMID_AN_EPOCH = {"step": 14}
WHILE_SAVING = {"step": 11, "point": "saving"}
AT_EACH_POINT = [
    {"step": 0, "rank": 2},
    {"step": 5, "point": "saving"},
    {"step": 11, "point": "reported", "rank": 1},
    {"step": 14, "rank": 2},
]
# A teacher, a cluster memory, batch-hard triplets over two workers, and no source; gradients that
# travel as bf16.
BEYOND = [
    "ray.num_workers=2", 'source.root=""', "network.target_head=memory", "network.neck=bnneck",
    "adapt.teacher_momentum=0.9", "loss.triplet_weight=1", "loss.teacher_weight=0.5",
    "adapt.images_per_id=4", "adapt.batch_source=0", "adapt.batch_target=16", "adapt.epochs=3",
    "adapt.steps_per_epoch=6", "compress_gradients=true",
]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "faults"),
    [
        (["ray.num_workers=2", "accumulate=2"], [WHILE_SAVING, AMID_AN_EPOCH]),
        pytest.param(
            ["ray.num_workers=1", "ray.images=jpeg"], [AMID_AN_EPOCH],
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            ["ray.num_workers=2"], [AMID_AN_EPOCH],
            marks=pytest.mark.nightly,
        ),
        pytest.param(["ray.num_workers=3"], AT_EACH_POINT, marks=pytest.mark.nightly),
        pytest.param(BEYOND, [{"step": 14, "rank": 1}], marks=pytest.mark.nightly),
    ],
)  # fmt: skip
def test_killed__the_bits_of_an_undisturbed_training(
    ray_cluster, tiny_config, monkeypatch, settings, faults
):
    config = changed(
        tiny_config, "pretrain.epochs=3", "pretrain.batch_source=12", "pretrain.steps_per_epoch=6",
        "ray.data_cpus=1", *settings,
    )  # fmt: skip
    undisturbed, interrupted = train_twice(config, monkeypatch, faults)
    assert undisturbed.keys() == interrupted.keys()
    for name, tensor in undisturbed.items():
        assert np.isfinite(tensor).all(), name
        assert tensor.tobytes() == interrupted[name].tobytes(), name


def test_an_extraction_killed__the_files_of_an_undisturbed_one_by_one_worker(
    ray_cluster, tiny_config, monkeypatch
):
    monkeypatch.setenv(FAULTS, json.dumps([{"stage": "killed", "step": 1, "rank": 1}]))
    torch.manual_seed(0)
    network = DaalNetwork(tiny_config.network)
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    images, _ = ingest(tiny_config, "target")
    progress, found = silent(), []
    for stage, number in (("undisturbed", 1), ("killed", 2)):
        config = changed(tiny_config, f"ray.num_workers={number}", "ray.data_cpus=1")
        folder = RunFolder(f"{config.out}-{stage}")
        with (
            ray_session(config.ray) as resources,
            Workers(config, folder, resources, progress) as workers,
        ):
            pixels = Pixels(config, resources, lambda text: None)
            entries = extract(stage, images, config, weights, workers, pixels, folder="features")
            assert workers.num_starts() == number
        assert all(entry_of(folder.read(name)) == entry for name, entry in entries.items())
        found.append(entries)
    assert found[0] == found[1] and len(found[0]) > 2


def train_twice(config, monkeypatch, faults):
    """Undisturbed, and with the faults."""
    # Ray Train counts a checkpoint as made when its controller next looks, by default each 2 s.
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    monkeypatch.setenv(FAULTS, json.dumps([{"stage": "interrupted", **fault} for fault in faults]))
    figures = []
    progress = silent(figures.append)
    with ray_session(config.ray) as resources:
        images, _ = ingest(config, "target")
        with Workers(config, RunFolder(config.out), resources, progress) as workers:
            pixels = Pixels(config, resources, lambda text: None)
            trainer = Trainer(config, workers, pixels, progress)
            undisturbed, interrupted = (
                train(trainer, stage, images) for stage in ("undisturbed", "interrupted")
            )
            assert workers.num_starts() == 1 + len(faults)
    first_step = {row["stage"]: row["first_step"] for row in figures if "first_step" in row}
    assert first_step["undisturbed"] == 0
    assert first_step["interrupted"] in (6, 12), "it did not resume from a checkpoint"
    return undisturbed, interrupted


def train(trainer, stage, images):
    """On the target's identities, or on drawn clusters where there is no source."""
    if not trainer.config.target_only:
        return trainer.supervised(stage, images)
    features = np.random.default_rng(0).standard_normal((len(images.table), 512), np.float32)
    labels = np.full(len(features), -1)
    rows = images.rows("train")
    labels[rows] = np.arange(len(rows)) % 5
    untrained = trainer.untrained()
    return trainer.adapt(stage, 1, None, images, features[rows], labels[:, None], untrained)
