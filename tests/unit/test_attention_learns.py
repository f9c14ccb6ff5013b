"""The attention module trains: each layer has a gradient in the first step, and A leaves its start.

In an adaptation on random images of two domains, with an attention that starts at random.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from daal.config import Config
from daal.load_config import load_config
from daal.nn.network import DaalNetwork
from daal.optimizer import make_optimizer
from daal.precision import mixed_precision
from daal.step import TrainBatch, train_step
from pipelines.tools.shipped import RECIPES
from pipelines.training.train_batch import Labels
from pipelines.training.train_loop import build_network

CUT = [
    "network.backbone=resnet18", "network.weights=none", "mixed_precision=false",
    "network.attention.zero_init=false", "ray.num_workers=1", "adapt.batch_source=4",
]  # fmt: skip
NUM_IDS, NUM_CLUSTERS, STEPS = 3, 4, 100
EXCHANGE = ["loss.exchange_weight=1", "network.attention.stride=1"]


def adapting(recipe: str, settings: list[str]) -> tuple[Config, DaalNetwork, TrainBatch]:
    config = load_config(RECIPES / f"{recipe}.yaml", [*CUT, *settings])
    rng = np.random.default_rng(0)
    centroids_KC = rng.random((NUM_CLUSTERS, 512), np.float32)
    labels = Labels(np.arange(NUM_IDS), NUM_IDS, centroids_KC=centroids_KC)
    network = build_network(config, labels, {}).train()
    images_BCHW = torch.from_numpy(rng.standard_normal((8, 3, 64, 32), np.float32))
    images_BCHW[4:] += 0.5  # the target's light
    labels_T = torch.tensor([0, 0, 1, 3])
    weights_TK = F.one_hot(labels_T, NUM_CLUSTERS).float()
    batch = TrainBatch(images_BCHW, torch.tensor([0, 1, 1, 2]), weights_TK, labels_T)
    return config, network, batch


def train(config: Config, network: DaalNetwork, batch: TrainBatch, steps: int) -> None:
    optimizer = make_optimizer(network, config.adapt.optim)
    for _ in range(steps):
        train_step(
            network, [batch], optimizer, config.loss, torch.zeros(()), lambda _: None,
            mixed_precision(torch.device("cpu"), wanted=False),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [("demo", []), ("demo", EXCHANGE), ("fast", []), ("modern", EXCHANGE), ("paper", [])],
)
def test_each_layer_has_a_gradient_in_the_first_step(recipe: str, settings: list[str]) -> None:
    config, network, batch = adapting(recipe, settings)
    train(config, network, batch, steps=1)
    largest = {
        name: 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
        for name, parameter in network.attention.named_parameters()
    }
    assert min(largest.values()) > 1e-8, largest


def test_a_start_of_one_half__stops_the_gradient() -> None:
    config, network, batch = adapting("demo", ["network.attention.zero_init=true"])
    train(config, network, batch, steps=1)
    attention = network.attention.attention
    assert attention.last_norm.weight.grad.abs().max() > 0
    assert attention.depthwise.weight.grad.abs().max() == 0


@pytest.mark.parametrize("settings", [[], EXCHANGE])
def test_a_hundred_steps__move_the_attention_off_its_start(settings: list[str]) -> None:
    config, network, batch = adapting("demo", settings)

    def attention_BCHW() -> torch.Tensor:
        with torch.inference_mode():
            return network.eval().feature_maps(batch.images_BCHW)[2]

    before_BCHW = attention_BCHW()
    train(config, network.train(), batch, STEPS)
    assert (attention_BCHW() - before_BCHW).abs().mean() > 0.02
