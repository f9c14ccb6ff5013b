"""A worker's part of an extraction: features in the rows' order, copied batch by batch."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from torch import Tensor

from daal.config import Config
from daal.load_config import load_config
from daal.nn.network import DaalNetwork
from daal.trained_model import TrainedModel
from pipelines.images.pixels import ImageSource
from pipelines.training import extract
from pipelines.training.extract import BATCH, ExtractJob

NUM_IMAGES = 7


def config(*settings: str) -> Config:
    return load_config(None, [
        "network.backbone=resnet18", "network.weights=none", "input.height=32", "input.width=16",
        "mixed_precision=false", *settings,
    ])  # fmt: skip


@pytest.fixture
def pixels_NHWC(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Kept pixels of all images, which any reader of them finds by row."""
    draw = np.random.default_rng(0)
    found = torch.from_numpy(draw.integers(0, 256, (NUM_IMAGES, 32, 16, 3), np.uint8))
    reader = SimpleNamespace(read=lambda rows: found[rows])
    monkeypatch.setattr(extract, "pixel_reader", lambda *_: reader)
    monkeypatch.setattr(ray, "get", lambda value: value)
    return found


def job(config: Config) -> ExtractJob:
    torch.manual_seed(0)
    weights: Any = {n: t.numpy() for n, t in DaalNetwork(config.network).state_dict().items()}
    source = ImageSource(None, (), np.arange(NUM_IMAGES))  # type: ignore[arg-type]
    return ExtractJob("extract", config, source, np.arange(NUM_IMAGES), weights)


def worker() -> Any:
    return SimpleNamespace(
        rank=0, world_size=1, device=torch.device("cpu"), reach=lambda *_: None, log=print
    )


@pytest.mark.parametrize("batch", [2, 3, 7, 100])
def test_features_are_in_the_rows_order(
    pixels_NHWC: Tensor, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setitem(BATCH, "cpu", batch)
    asked = job(config())
    rows, features_NC = asked.run(worker())
    assert rows.tolist() == list(range(NUM_IMAGES))
    tensors = {name: torch.from_numpy(array) for name, array in asked.weights.items()}  # type: ignore[attr-defined]
    with torch.inference_mode():
        expected_NC = TrainedModel(asked.config, tensors)(pixels_NHWC.permute(0, 3, 1, 2))
    assert features_NC.dtype == np.float32
    np.testing.assert_allclose(features_NC, expected_NC, rtol=1e-4, atol=1e-5)
