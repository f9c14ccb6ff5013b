"""The same seed and number of workers give the same bits, whatever dies on the way."""

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import ray
from rich.console import Console

from daal.config import Config
from daal.load_config import apply_overrides, check_config
from pipelines.images.ingest import ingest
from pipelines.images.pixels import Images, Pixels
from pipelines.run.folder import RunFolder
from pipelines.show.progress import Progress
from pipelines.training.fit import Trainer
from pipelines.training.train_state import Weights
from pipelines.workers.group import Workers
from pipelines.workers.planned_faults import FAULTS
from pipelines.workers.session import ray_session

pytestmark = pytest.mark.ray


# Three epochs of six steps, a checkpoint behind each.
AMID_AN_EPOCH = {"step": 14}
WHILE_SAVING = {"step": 11, "point": "saving"}
AT_EACH_POINT = [
    {"step": 0, "rank": 2},
    {"step": 5, "point": "saving"},
    {"step": 11, "point": "reported", "rank": 1},
    {"step": 14, "rank": 2},
]


@pytest.mark.parametrize(
    ("num_workers", "images", "accumulate", "faults"),
    [
        (1, "jpeg", 2, [AMID_AN_EPOCH]),
        pytest.param(2, "auto", 1, [AMID_AN_EPOCH], marks=pytest.mark.nightly),
        (3, "auto", 1, [WHILE_SAVING]),
        pytest.param(3, "auto", 1, AT_EACH_POINT, marks=pytest.mark.nightly),
    ],
)
def test_killed__the_bits_of_an_undisturbed_training(
    ray_cluster: None,
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    num_workers: int,
    images: str,
    accumulate: int,
    faults: list[dict[str, Any]],
) -> None:
    # Ray Train counts a checkpoint as made when its controller next looks, by default each 2 s.
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    monkeypatch.setenv(FAULTS, json.dumps([{"stage": "struck", **fault} for fault in faults]))
    config = tiny_config.model_copy(
        update={
            "pretrain": tiny_config.pretrain.model_copy(
                update={
                    "epochs": 3,
                    "batch_source": 12,
                    "steps_per_epoch": 6,
                }
            ),
            "accumulate": accumulate,
            "ray": tiny_config.ray.model_copy(
                update={"num_workers": num_workers, "data_cpus": 1, "images": images}
            ),
        }
    )
    calm, struck = train_twice(
        config, lambda trainer, stage, images: trainer.supervised(stage, images), len(faults)
    )
    assert np.isfinite(calm["source_head.fc.weight"]).all()
    assert_same_bits(calm, struck)


@pytest.mark.nightly
def test_beyond_the_paper__the_same_bits_as_well(
    ray_cluster: None, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher, a cluster memory, batch-hard triplets over two workers, and no source; gradients
    that are sent as bf16."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    monkeypatch.setenv(FAULTS, json.dumps([{"stage": "struck", "step": 14, "rank": 1}]))
    changes = ["network.target_head=memory", "network.neck=bnneck", "adapt.teacher_momentum=0.9"]
    config = check_config(apply_overrides(tiny_config.model_dump(), [
        *changes, "loss.triplet_weight=1", "loss.teacher_weight=0.5", "adapt.images_per_id=4",
        "adapt.batch_source=0", "adapt.batch_target=16", "adapt.epochs=3",
        "adapt.steps_per_epoch=6", 'source.root=""', "ray.num_workers=2",
        "compress_gradients=true",
    ]))  # fmt: skip
    assert config.target_only
    starts: dict[str, np.ndarray] = {}

    def adapt(trainer: Trainer, stage: str, images: Images) -> Weights:
        rng = np.random.default_rng(0)
        features = rng.standard_normal((len(images.table), 512)).astype(np.float32)
        labels = np.full(len(features), -1)
        rows = images.rows("train")
        labels[rows] = np.arange(len(rows)) % 5
        starts.update(trainer.untrained())
        return trainer.adapt(stage, 1, None, images, features, labels[:, None], starts)

    calm, struck = train_twice(config, adapt)
    assert_same_bits(calm, struck)
    assert calm["target_head.memory_KC"].shape == (5, 512)
    assert "source_head.fc.weight" not in calm and "domain_head.weight" not in calm
    assert np.isfinite(calm["backbone.conv1.weight"]).all()
    assert not np.array_equal(calm["backbone.conv1.weight"], starts["backbone.conv1.weight"])


def train_twice(
    config: Config, train: Callable[[Trainer, str, Images], Weights], num_faults: int = 1
) -> tuple[Weights, Weights]:
    """Undisturbed, and with the faults of the stage called "struck"."""
    figures: list[dict] = []
    progress = Progress(figures.append, Console(file=io.StringIO()))
    with ray_session(config.ray) as resources:
        table, _ = ingest(config, "target")
        images = Images(table, ray.put(table))
        with Workers(config, RunFolder(config.out), resources, progress) as workers:
            pixels = Pixels(config, resources, lambda text: None)
            trainer = Trainer(config, workers, pixels, progress)
            calm, struck = train(trainer, "calm", images), train(trainer, "struck", images)
            assert workers.num_starts() == 1 + num_faults
    first_step = {row["stage"]: row["first_step"] for row in figures if "first_step" in row}
    assert first_step["calm"] == 0
    assert first_step["struck"] in (6, 12), "it did not go on from a checkpoint"
    return calm, struck


def assert_same_bits(calm: Weights, struck: Weights) -> None:
    assert calm.keys() == struck.keys()
    for name, tensor in calm.items():
        assert tensor.tobytes() == struck[name].tobytes(), name
