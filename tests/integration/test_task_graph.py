"""The estimate spread over Ray tasks is the local estimate, bit for bit."""

import numpy as np
import pytest

from cluster.estimate import estimate_pseudo_labels
from cluster.task_graph import default_num_blocks, estimate_on_ray
from daal.config import ClusterConfig
from daal.errors import ConfigError, LabelError

CONFIG = ClusterConfig(k1=10, k2=3, p=0.02)


def drawn_features():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((30, 24))[rng.integers(0, 30, 500)]
    features += 0.4 * rng.standard_normal((500, 24))
    features[-30:] = features[0]  # enough copies that whole rows are searched again
    return features.astype(np.float32)


@pytest.mark.ray
@pytest.mark.parametrize("num_blocks", [None, 3])
def test_same_bits_as_the_local_estimate(ray_cluster, num_blocks):
    import ray

    features = drawn_features()
    local = estimate_pseudo_labels(features, CONFIG)
    given = features if num_blocks is None else ray.put(features)
    found = estimate_on_ray(given, CONFIG, num_blocks=num_blocks)
    assert found.eps == local.eps
    assert np.array_equal(found.labels, local.labels)
    assert np.array_equal(found.centroids, local.centroids)
    assert found.notes == local.notes


@pytest.mark.ray
def test_errors_arrive_as_they_are(ray_cluster):
    with pytest.raises(LabelError, match="cluster"):
        estimate_on_ray(drawn_features(), CONFIG, eps=1e-5)


@pytest.mark.ray
def test_cuml_on_a_cluster_without_gpus(ray_cluster):
    import ray

    if ray.cluster_resources().get("GPU"):
        pytest.skip("the cluster has a GPU")
    with pytest.raises(ConfigError, match="has none"):
        estimate_on_ray(drawn_features(), ClusterConfig(backend="cuml"))


def test_default_num_blocks():
    assert default_num_blocks(20_000, 64) == 1
    assert default_num_blocks(33_000, 16) == 10
    assert default_num_blocks(1_000_000, 4) == 50
