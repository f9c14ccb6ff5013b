"""Parts of the body: pooled apart, extracted together, with triplets of their own."""

import numpy as np
import torch
from torch.nn import functional as F

from daal.config import NetworkConfig
from daal.nn.network import DaalNetwork
from daal.nn.stripes import pool_stripes, whole_and_stripes

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
