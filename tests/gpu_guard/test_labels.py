"""Pseudo-labels on tensors that say "cuda": the CPU's, by the branches of a GPU."""

import numpy as np
import pytest
from planted import planted
from sklearn.cluster import DBSCAN

from benchmarks.pretended_cuda import PretendedTensor, pretended_cuda
from cluster import core_samples, device, neighbours, refine, search_on_device
from cluster.estimate import estimate_pseudo_labels
from cluster.run import Threads
from daal.config import ClusterConfig

ROWS, COLUMNS = 200, 250  # of a block, and of a tile
MOST_UPLOADED = 1.02  # times the features: they go up once, whatever the number of blocks
SETTINGS = {
    "as printed": {},
    "faiss's dialect": {"dialect": "faiss"},
    "cameras apart": {"camera_aware": True},
    "cameras' own mean": {"camera_norm": True},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS_ON_DEVICE", ROWS)
    monkeypatch.setattr(search_on_device, "COLUMNS_ON_DEVICE", COLUMNS)


@pytest.fixture(scope="module")
def features_ND():
    """40 people and some noise. Some images have copies."""
    rng = np.random.default_rng(0)
    centres_KD = rng.standard_normal((40, 64))
    features_ND = centres_KD[rng.integers(0, 40, 600)] + 0.6 * rng.standard_normal((600, 64))
    features_ND[:10] = features_ND[590:]
    return features_ND.astype(np.float32)


@pytest.fixture
def estimate(features_ND):
    camids_N = np.arange(len(features_ND)) % 4

    def run(device, **settings):
        config = ClusterConfig(**{"backend": "components", "q": 6, **settings})
        with Threads(1, device) as runner:
            return estimate_pseudo_labels(
                features_ND, config, camids_N=camids_N, runner=runner, num_blocks=2
            )

    return run


def assert_same(found, expected):
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.centroids, expected.centroids)
    assert (found.eps, found.notes) == (expected.eps, expected.notes)
    assert 20 < found.num_clusters < 60


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_same_labels(estimate, features_ND, settings):
    expected = estimate("cpu", **settings)
    with pretended_cuda() as cuda:
        found = estimate("cuda", **settings)
    assert_same(found, expected)
    assert cuda.launches["topk"] > 0
    assert cuda.bytes_up < MOST_UPLOADED * features_ND.nbytes
    assert cuda.bytes_down < 100 * 8 * len(features_ND)  # neighbours or candidates of each image
    # By blocks, whatever the number of tiles. Cameras have blocks of their own, in two searches.
    num_blocks = 8 if "camera_aware" in settings else len(features_ND) // ROWS
    assert cuda.waits.total() <= 8 * num_blocks


def test_cuml__only_edges_go_up(estimate, features_ND, monkeypatch):
    def by_sklearn(distance_BB, min_samples):
        assert isinstance(distance_BB, PretendedTensor)
        fitted = DBSCAN(eps=0.5, min_samples=min_samples, metric="precomputed")
        return fitted.fit(distance_BB.held.numpy()).labels_

    monkeypatch.setattr(core_samples, "can_import", lambda *_: True)
    monkeypatch.setattr(core_samples, "cuml_labels", by_sklearn)
    expected = estimate("cpu")
    with pretended_cuda() as cuda:
        found = estimate("cuda", backend="cuml")
    assert_same(found, expected)
    num_pairs = len(features_ND) ** 2
    assert cuda.bytes_up < features_ND.nbytes + num_pairs  # of 4 bytes each
    assert "dbscan: cuml" in found.stages


def test_planted_bug(estimate, monkeypatch):
    monkeypatch.setattr(refine, "rounding_bound", lambda *_: 0.01)  # rows are in doubt
    old = "num_rows, device=features.device)"
    with pretended_cuda(), planted(search_on_device, "_refined", old, "num_rows)"):
        with pytest.raises((RuntimeError, TypeError), match=r"two different devices|cuda:0"):
            estimate("cuda")


def test_planted_bug__features_that_go_up_for_each_block(estimate, features_ND):
    bug = planted(device, "kept_on_device", "if key not in _kept:", "if True:")
    with pretended_cuda() as cuda, bug:
        estimate("cuda")
    assert cuda.bytes_up >= MOST_UPLOADED * features_ND.nbytes


def test_planted_bug__a_look_at_each_sample(estimate):
    new = "    [float(row.sum()) for row in features[:50]]; itself_first, scale"
    bug = planted(search_on_device, "_refined", "    itself_first, scale", new)
    with pretended_cuda() as cuda, bug:
        estimate("cuda")
    assert cuda.waits.total() > 100
