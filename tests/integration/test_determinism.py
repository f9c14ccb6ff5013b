"""The same seed and number of workers give the same bits, whatever dies on the way."""

import io
import json

import numpy as np
import pytest
import ray
from rich.console import Console

from daal.config import Config
from pipelines.faults import FAULTS
from pipelines.fit import Trainer
from pipelines.ingest import ingest
from pipelines.pixels import Images, Pixels
from pipelines.progress import Progress
from pipelines.run_folder import RunFolder
from pipelines.session import ray_session
from pipelines.workers import Workers

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("num_workers", "images", "batch_norm_images", "accumulate"),
    [(1, "jpeg", 16, 2), (2, "auto", 1, 1), (3, "auto", 16, 1)],
)
def test_killed_amid_an_epoch__the_bits_of_an_undisturbed_training(
    ray_cluster: None,
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    num_workers: int,
    images: str,
    batch_norm_images: int,
    accumulate: int,
) -> None:
    # Ray Train counts a checkpoint as made when its controller next looks, by default each 2 s.
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    fault = {"stage": "struck", "step": 14, "rank": num_workers - 1}
    monkeypatch.setenv(FAULTS, json.dumps([fault]))
    config = tiny_config.model_copy(
        update={
            "pretrain": tiny_config.pretrain.model_copy(
                update={
                    "epochs": 3,
                    "batch_source": 12,
                    "steps_per_epoch": 6,
                    "accumulate": accumulate,
                }
            ),
            "network": tiny_config.network.model_copy(
                update={"batch_norm_images": batch_norm_images}
            ),
            "ray": tiny_config.ray.model_copy(
                update={"num_workers": num_workers, "data_cpus": 1, "images": images}
            ),
        }
    )
    figures: list[dict] = []
    progress = Progress(figures.append, Console(file=io.StringIO()))
    with ray_session(config.ray) as resources:
        table, _ = ingest(config.source, "source", 0)
        source = Images(table, ray.put(table))
        with Workers(config, RunFolder(config.out), resources, progress) as workers:
            pixels = Pixels(config, resources, lambda text: None)
            trainer = Trainer(config, workers, pixels, progress)
            calm = trainer.supervised("calm", source)
            struck = trainer.supervised("struck", source)
    first_step = {row["stage"]: row["first_step"] for row in figures if "first_step" in row}
    assert first_step["calm"] == 0
    assert first_step["struck"] in (6, 12), "it did not go on from a checkpoint"
    assert calm.keys() == struck.keys()
    for name, tensor in calm.items():
        assert tensor.tobytes() == struck[name].tobytes(), name
    assert np.isfinite(calm["source_head.fc.weight"]).all()
