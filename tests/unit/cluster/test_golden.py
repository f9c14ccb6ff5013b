"""Against a folder of reference values made by others' code, where there is one.

DAAL_GOLDEN names the folder: `<set>_k<k1>_k<k2>.npz`, `real_features.npz`, `eq4_weights.npz`.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support import CPU_BACKENDS

from cluster.centroids import centroids
from cluster.dbscan import dbscan
from cluster.eps import estimate_eps
from cluster.estimate import estimate_pseudo_labels
from cluster.jaccard import jaccard_distance
from cluster.soft_labels import soft_label_weights
from daal.config import ClusterConfig

FOLDER = Path(os.environ.get("DAAL_GOLDEN", "")) if os.environ.get("DAAL_GOLDEN") else None
CASES = [
    f"{name}_k{k1}_k{k2}"
    for name in ("real", "duplicates", "tiny")
    for k1, k2 in ((20, 6), (30, 6), (20, 1))
]
pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="DAAL_GOLDEN isn't set to a folder of reference values"
)


@pytest.fixture(scope="module", params=CASES)
def golden(request):
    values = dict(np.load(FOLDER / f"{request.param}.npz"))
    if "features" not in values:
        values["features"] = np.load(FOLDER / "real_features.npz")["features"]
    return values


def test_distances_eps_and_labels(golden):
    k1, k2 = int(golden["k1"]), int(golden["k2"])
    distance = jaccard_distance(golden["features"], k1, k2)
    rows = np.repeat(np.arange(distance.shape[0]), np.diff(distance.indptr))
    upper = distance.indices > rows
    order = np.lexsort((golden["cols"], golden["rows"]))
    assert np.array_equal(rows[upper], golden["rows"][order])
    assert np.array_equal(distance.indices[upper], golden["cols"][order])
    np.testing.assert_allclose(distance.data[upper], golden["dist"][order], atol=1e-6)
    for p, eps, labels in zip(
        golden["p_values"], golden["eps_values"], golden["labels"], strict=True
    ):
        found = estimate_eps(distance, p)
        assert found == pytest.approx(eps, rel=1e-6)
        for backend in CPU_BACKENDS:
            assert np.array_equal(dbscan(distance, found, 4, backend), labels)


def test_the_whole_estimate(golden):
    for p, eps, labels in zip(
        golden["p_values"], golden["eps_values"], golden["labels"], strict=True
    ):
        if labels.max() < 0:
            continue
        config = ClusterConfig(
            k1=int(golden["k1"]), k2=int(golden["k2"]), p=p, min_clusters=1, max_cluster_share=1
        )
        found = estimate_pseudo_labels(golden["features"], config)
        assert found.eps == pytest.approx(eps, rel=1e-5)
        assert np.array_equal(found.labels, labels)


def test_eq_4():
    golden = np.load(FOLDER / "eq4_weights.npz")
    means = centroids(golden["features"], golden["labels"])
    np.testing.assert_allclose(means, golden["centroids"], atol=1e-7)
    given = map(torch.from_numpy, (golden["features"], means, golden["labels"]))
    weights = soft_label_weights(*given, float(golden["eps"]))
    np.testing.assert_allclose(weights, golden["weights"], rtol=1e-5)
