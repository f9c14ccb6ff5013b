"""Parts of the body: pooled apart, extracted together, with triplets of their own."""

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from daal.config import LossConfig, NetworkConfig
from daal.losses import triplet_loss
from daal.nn.network import DaalNetwork
from daal.nn.stripes import pool_stripes, whole_and_stripes
from daal.step import TrainBatch, _loss_terms

CONFIG = NetworkConfig(backbone="resnet18", weights="none", stripes=2)


def test_stripes_are_the_rows_of_the_map_from_top_to_bottom():
    features = torch.arange(2 * 3 * 5 * 2, dtype=torch.float32).reshape(2, 3, 5, 2)
    found = pool_stripes(lambda part: part.mean(dim=(2, 3)), features, 2)
    assert found.shape == (2, 2, 3)
    assert torch.equal(found[:, 0], features[:, :, :3].mean(dim=(2, 3)))
    assert torch.equal(found[:, 1], features[:, :, 3:].mean(dim=(2, 3)))


def test_extracted_features_hold_the_whole_body_and_each_half():
    torch.manual_seed(0)
    network = DaalNetwork(CONFIG).eval()
    images = torch.randn(3, 3, 64, 32)
    with torch.no_grad():
        extracted = network.extract(images)
        shared, _, _ = network.feature_maps(images)
    assert network.num_features == extracted.shape[1] == 3 * 512
    assert torch.allclose(extracted.norm(dim=1), torch.ones(3))
    parts = whole_and_stripes(extracted.numpy(), 2)
    expected = [shared, shared[:, :, :1], shared[:, :, 1:]]  # a map of 2 rows
    for part, map_BCHW in zip(parts, expected, strict=True):
        unit = F.normalize(map_BCHW.mean(dim=(2, 3)), dim=1).numpy()
        assert np.allclose(part, unit, atol=1e-6)
    assert whole_and_stripes(parts[0], 0)[0] is parts[0]


def test_triplets_are_of_the_whole_body_and_of_each_stripe_with_its_labels():
    torch.manual_seed(0)
    network = DaalNetwork(CONFIG, 0, 2).train()
    images = torch.randn(8, 3, 64, 32)
    labels = torch.tensor(
        [[0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 1, 1, 1]]
    )
    whole, upper, lower = labels
    batch = TrainBatch(
        images,
        torch.empty(0, dtype=torch.int64),
        torch.full((8, 2), 0.5),
        whole,
        torch.stack([upper, lower], 1),
    )
    weights = LossConfig(triplet_weight=1, triplet_margin=0.5)
    with torch.no_grad():
        out = network(images, 0)
        found = _loss_terms(out, batch, weights).triplet
        of_whole = _loss_terms(out, replace(batch, stripe_labels_TS=None), weights).triplet
        features = [out.pooled_BC, *out.stripes_BSC.unbind(1)]
        expected = [
            triplet_loss(part, of_part, 0.5)
            for part, of_part in zip(features, [whole, upper, lower], strict=True)
        ]
    assert torch.allclose(found, sum(expected), rtol=1e-6)
    assert torch.equal(of_whole, expected[0])
