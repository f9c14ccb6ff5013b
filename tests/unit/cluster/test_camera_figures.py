"""Do clusters follow cameras? Figures by hand, against random clusters, and on drawn features."""

from dataclasses import astuple

import numpy as np
import pytest
from scipy.sparse import csr_array

from cluster.camera_figures import CameraFigures, camera_figures
from cluster.estimate import estimate_pseudo_labels
from cluster.quality import cluster_quality, graph_silhouette
from daal.config import ClusterConfig


def test_figures_by_hand():
    # Clusters: three images of camera 0; two of cameras 0 and 1; one image alone; an outlier.
    labels = np.array([0, 0, 0, 1, 1, 2, -1])
    camids = np.array([0, 0, 0, 0, 1, 1, 1])
    pids = np.array([7, 7, 8, 9, 9, 9, 9])
    found = camera_figures(labels, camids, pids)
    assert found.one_camera_share == 1 / 2
    assert found.cross_camera_share == 1 / 4
    # Of 21 pairs of 7 images, 12 are of two cameras; of 35 triples, 4 + 1 are of one.
    assert found.cross_camera_chance == pytest.approx(12 / 21)
    assert found.one_camera_chance == pytest.approx((5 / 35 + 9 / 21) / 2)
    assert found.cross_camera_precision == 1
    assert camera_figures(labels, camids, np.arange(7)).cross_camera_precision == 0
    assert camera_figures(labels, camids).cross_camera_precision is None
    assert cluster_quality(labels, pids, camids).one_camera_share == 1 / 2


def test_chances_are_the_means_of_random_clusters():
    rng = np.random.default_rng(0)
    camids = rng.choice(4, 90, p=[0.6, 0.2, 0.1, 0.1])
    labels = np.repeat(np.arange(-1, 29), 3)
    found = camera_figures(labels, camids)
    random = [camera_figures(rng.permutation(labels), camids) for _ in range(2000)]
    shares = np.mean([(each.one_camera_share, each.cross_camera_share) for each in random], axis=0)
    chances = found.one_camera_chance, found.cross_camera_chance
    assert shares == pytest.approx(chances, abs=0.005)


@pytest.mark.parametrize(
    ("labels", "camids"),
    [
        ([0, 0, 1, 1], [3, 3, 3, 3]),
        ([0, 0, 1, 1], [-1, -1, -1, -1]),
        ([0, 0, 1, 1], [-1, -1, 2, 2]),
        ([-1, -1, -1, -1], [1, 1, 2, 2]),
        ([0, 1, -1, -1], [1, 1, 2, 2]),
    ],
    ids=["one camera", "unknown", "one that is known", "outliers", "no pair"],
)
def test_nothing_is_said_where_there_is_nothing_to_say(labels, camids):
    assert camera_figures(np.array(labels), np.array(camids)) == CameraFigures()


def test_images_of_unknown_cameras_count_nowhere():
    labels, camids = np.array([0, 0, 1, 1, 0, 1]), np.array([0, 1, 1, 1, -1, -1])
    found = camera_figures(labels, camids)
    assert astuple(found) == astuple(camera_figures(labels[:4], camids[:4]))


def test_silhouette_across_cameras_by_hand():
    dense = np.zeros((5, 5))
    for i, j, distance in ((0, 1, 0.1), (0, 2, 0.2), (1, 2, 0.4), (3, 4, 0.1), (2, 3, 0.8)):
        dense[i, j] = dense[j, i] = distance
    labels, camids = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 0, 0])
    # Images 0, 1: a = 0.2, 0.4 and b = 1. Image 2: a = 0.3, and b = 0.9, the mean over 3 and 4.
    # Images 3 and 4 have no image of another camera in their cluster: a = 1; b = 0.8 and 1.
    expected = np.mean([0.8, 0.6, 1 - 0.3 / 0.9, -0.2, 0])
    assert graph_silhouette(csr_array(dense), labels, 1.0, camids) == pytest.approx(expected)


def drawn(camera):
    """Features of 60 people by 4 cameras, three images by each, pids and camids; `camera`: how
    large a camera's offset and its share in each person's look are."""
    rng = np.random.default_rng(0)
    pids, camids = np.repeat(np.arange(1, 61), 12), np.tile(np.repeat(np.arange(4), 3), 60)
    features = rng.standard_normal((61, 64))[pids] + 0.5 * rng.standard_normal((720, 64))
    features += camera * rng.standard_normal((4, 64))[camids]
    features += 0.7 * camera * rng.standard_normal((244, 64))[4 * pids + camids]
    return features, pids, camids


def labelled(camera):
    features, pids, camids = drawn(camera)
    found = estimate_pseudo_labels(features, ClusterConfig(k1=15, k2=4, eps=0.5), camids_N=camids)
    return found, camera_figures(found.labels, camids, pids)


def test_clusters_that_follow_cameras_raise_the_silhouette__not_the_one_across_cameras():
    (good, by_person), (mixed, _), (worst, by_camera) = map(labelled, (0.5, 0.8, 3))
    assert by_person.one_camera_share == 0 and by_camera.one_camera_share > 0.95
    assert by_camera.one_camera_chance < 0.01
    assert by_person.cross_camera_share > by_person.cross_camera_chance > 0.7
    assert by_camera.cross_camera_share < 0.05
    assert by_person.cross_camera_precision > 0.95
    assert worst.silhouette > mixed.silhouette + 0.02
    assert good.cross_camera_silhouette > 0.7
    assert good.cross_camera_silhouette > mixed.cross_camera_silhouette
    assert mixed.cross_camera_silhouette > worst.cross_camera_silhouette


def test_cameras_change_no_label_and_may_be_unknown():
    features, _, camids = drawn(1)
    config = ClusterConfig(k1=15, k2=4, q=8)
    without = estimate_pseudo_labels(features, config)
    assert without.cross_camera_silhouette is None
    for given in (camids, camids.tolist(), np.zeros(720, int), np.full(720, -1)):
        found = estimate_pseudo_labels(features, config, camids_N=given)
        assert np.array_equal(found.labels, without.labels)
        assert found.silhouette == without.silhouette
        assert (found.cross_camera_silhouette is None) == (len(np.unique(given)) == 1)
