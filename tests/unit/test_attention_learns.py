"""The attention module trains: each layer has a gradient in the first step, and A leaves its start.

In an adaptation of random images of two domains, by the settings of each shipped recipe that has
an attention.
"""

import numpy as np
import pytest
import torch

from daal.config import Config
from daal.load_config import load_config
from daal.nn.network import DaalNetwork
from daal.optimizer import make_optimizer
from daal.precision import mixed_precision
from daal.step import TrainBatch, train_step
from pipelines.tools.shipped import RECIPES
from pipelines.training.train_batch import Labels
from pipelines.training.train_loop import build_network

LITERAL = "paper"  # its rates are so low that its A moves in days
CUT = [
    "network.backbone=resnet18", "network.weights=none", "mixed_precision=false",
    "ray.num_workers=1", "adapt.batch_source=4",
]  # fmt: skip
NUM_IDS, NUM_CLUSTERS, STEPS = 3, 4, 100


def adapting(recipe: str) -> tuple[Config, DaalNetwork, TrainBatch]:
    config = load_config(RECIPES / f"{recipe}.yaml", CUT)
    rng = np.random.default_rng(0)
    centroids_KC = rng.random((NUM_CLUSTERS, 512), np.float32)
    network = build_network(
        config, Labels(np.arange(NUM_IDS), NUM_IDS, centroids_KC=centroids_KC), {}
    )
    images_BCHW = torch.from_numpy(rng.standard_normal((8, 3, 64, 32), np.float32))
    images_BCHW[4:] += 0.5  # the target's light
    labels_T = torch.tensor([0, 0, 1, 3])
    weights_TK = torch.nn.functional.one_hot(labels_T, NUM_CLUSTERS).float()
    return (
        config,
        network.train(),
        TrainBatch(images_BCHW, torch.tensor([0, 1, 1, 2]), weights_TK, labels_T),
    )


def train(config: Config, network: DaalNetwork, batch: TrainBatch, steps: int) -> None:
    optimizer = make_optimizer(network, config.adapt.optim)
    for _ in range(steps):
        train_step(
            network, [batch], optimizer, config.loss, torch.zeros(()), lambda _: None,
            mixed_precision(torch.device("cpu"), wanted=False),
        )  # fmt: skip


@pytest.mark.parametrize("recipe", ["demo", "fast", "modern", LITERAL])
def test_each_layer_has_a_gradient_in_the_first_step(recipe: str) -> None:
    config, network, batch = adapting(recipe)
    train(config, network, batch, steps=1)
    without = [
        name
        for name, parameter in network.attention.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 1e-8
    ]
    assert without == []


@pytest.mark.parametrize("recipe", ["demo", "fast", "modern"])
def test_a_hundred_steps__move_the_attention_off_its_start(recipe: str) -> None:
    config, network, batch = adapting(recipe)
    before_BCHW = network.eval().feature_maps(batch.images_BCHW)[2].detach()
    train(config, network.train(), batch, STEPS)
    after_BCHW = network.eval().feature_maps(batch.images_BCHW)[2].detach()
    assert (after_BCHW - before_BCHW).abs().mean() > 0.02
