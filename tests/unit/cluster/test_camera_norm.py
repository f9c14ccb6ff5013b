"""Camera-based normalisation of features before clustering."""

import numpy as np
import reference

from cluster.camera_norm import standardised_by_camera
from cluster.estimate import estimate_pseudo_labels
from cluster.quality import agreement
from daal.config import ClusterConfig


def test_every_camera_has_mean_0_and_spread_1_in_every_channel():
    rng = np.random.default_rng(0)
    camids = rng.integers(0, 3, 300)
    features = rng.standard_normal((300, 8)) * (1 + camids[:, None]) + 5 * camids[:, None]
    before = features.copy()
    found = standardised_by_camera(features, camids)
    assert found.dtype == np.float32 and np.array_equal(features, before)
    for camid in range(3):
        some = found[camids == camid].astype(np.float64)
        np.testing.assert_allclose(some.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(some.std(0), 1, atol=1e-4)


def test_rare_cameras_use_all_images_and_unusable_rows_are_left_alone():
    rng = np.random.default_rng(1)
    features = rng.standard_normal((60, 4)).astype(np.float32)
    features[3] = np.nan
    features[4] = 0
    camids = np.zeros(60, int)
    camids[-2:] = 7  # a camera with two images
    found = standardised_by_camera(features, camids)
    assert np.isnan(found[3]).all() and (found[4] == 0).all()
    others = np.delete(np.arange(60), [3, 4])
    unit = features[others] / np.linalg.norm(features[others], axis=1, keepdims=True)
    expected = (unit[-2:] - unit.mean(0)) / unit.std(0)
    np.testing.assert_allclose(found[-2:], expected, rtol=1e-4)
    assert np.isnan(standardised_by_camera(np.full((2, 3), np.nan), np.zeros(2, int))).all()


def test_clusters_no_longer_follow_cameras():
    features = reference.drawn(400, 24, 20, seed=3, noise=0.3)
    pids = estimate_pseudo_labels(features, ClusterConfig(k1=10, k2=3, p=0.02)).labels
    rng = np.random.default_rng(0)
    camids = rng.integers(0, 4, 400)
    shifted = features + 3 * rng.standard_normal((4, 24))[camids]
    config = ClusterConfig(k1=10, k2=3, p=0.02, max_cluster_share=1, min_clusters=1)
    plain = estimate_pseudo_labels(shifted, config, camids_N=camids).labels
    without = estimate_pseudo_labels(
        shifted, config.model_copy(update={"camera_norm": True}), camids_N=camids
    ).labels
    assert agreement(pids, without) > 0.4 > 0.3 > agreement(pids, plain)
