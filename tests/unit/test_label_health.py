"""Choosing a model and seeing collapse, and clusters that follow cameras, without identities."""

import numpy as np
import pytest

from cluster.quality import cluster_quality
from daal.config import ClusterConfig
from pipelines.run.label_health import best_model, converged, kept_eps, warnings
from pipelines.run.results import Clusters
from pipelines.run.stages import iteration_stage

CONFIG = ClusterConfig(eps=0.5)
KEPT = ["kept the previous labels: DBSCAN found 0 cluster(s) at eps=0.5"]
QUALITY = cluster_quality(np.array([0, 0, 1, 1])).as_dict()


def clusters(num_clusters=100, **figures):
    return Clusters.from_json({"eps": [0.5], **QUALITY, "num_clusters": num_clusters, **figures})


def test_warnings():
    assert warnings(clusters(), None, CONFIG) == []
    assert warnings(clusters(60, agreement=0.5), clusters(100), CONFIG) == []
    (undoing,) = warnings(clusters(agreement=0.05), clusters(), CONFIG)
    assert "0.05" in undoing and "learning rate" in undoing


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        (CONFIG, "cluster.eps"),
        (ClusterConfig(p=1e-3), "cluster.p"),
        (ClusterConfig(q=8), "cluster.q"),
    ],
)
def test_merging_clusters__the_setting_that_decides_on_eps(config, setting):
    (merging,) = warnings(clusters(49, agreement=0.5), clusters(100), config)
    assert "49 clusters after 100" in merging and f"use a smaller {setting}," in merging


def test_kept_labels__say_so__and_are_no_convergence():
    kept = clusters(agreement=1.0, notes=KEPT)  # as release 0.1 wrote: agreeing with themselves
    assert kept.kept and kept.agreement is None and not converged(kept, 0.95)
    assert Clusters.from_json(kept.as_dict()) == kept
    (collapse,) = warnings(kept, clusters(), CONFIG)
    assert "no new labels" in collapse
    found = clusters(agreement=0.96, notes=["3 images have an exact copy among the others."])
    assert Clusters.from_json(found.as_dict()) == found and not found.kept
    assert converged(found, 0.95) and not converged(found, 0.96) and not converged(clusters(), 0.1)


SHARES = ("one_camera_share", "one_camera_chance", "cross_camera_share", "cross_camera_chance")


def by_camera(*figures):
    return clusters(**dict(zip(SHARES, figures, strict=True)))


@pytest.mark.parametrize(
    ("changed", "remedy"),
    [
        ({}, "use cluster.camera_norm=true or cluster.camera_aware=true."),
        ({"camera_norm": True}, "use cluster.camera_aware=true."),
        ({"camera_norm": True, "search": "approximate"},
         "use cluster.camera_aware=true with cluster.search=exact."),
        ({"camera_norm": True, "camera_aware": True}, "use a better source model"),
    ],
)  # fmt: skip
def test_clusters_that_follow_cameras__have_a_remedy_that_is_left(changed, remedy):
    config = ClusterConfig(eps=0.5, **changed)
    (warning,) = warnings(by_camera(0.76, 0.07, 0.3, 0.5), None, config)
    assert "76% of them are of one camera (by chance 7%)" in warning and remedy in warning


@pytest.mark.parametrize(
    ("figures", "follow"),
    [
        ((0.55, 0.01, 0.7, 0.8), True),
        ((0.45, 0.01, 0.7, 0.8), False),
        ((0.55, 0.40, 0.3, 0.5), False),  # two cameras, small clusters: nearly chance
        ((0.20, 0.01, 0.1, 0.8), True),  # few clusters of one camera, but the large ones
        ((None, None, None, None), False),  # cameras unknown, or one
    ],
)
def test_clusters_follow_cameras__by_far_more_than_chance_would(figures, follow):
    assert len(warnings(by_camera(*figures), None, CONFIG)) == follow


@pytest.mark.parametrize(
    ("plain", "across", "best"),
    [
        ((0.3, 0.5, 0.4), (None, None, None), 2),
        ((0.5, 0.5, 0.5), (None, None, None), 3),  # of equal ones, the later
        ((0.3, None, 0.4), (None, None, None), 3),  # none was found from the second's features
        ((0.4, 0.5, 0.6), (0.3, 0.0, -0.1), 1),  # across cameras, where all labellings say
        ((None, 0.5, 0.6), (None, 0.0, -0.1), 2),
        ((0.4, 0.5, 0.6), (None, 0.0, -0.1), 3),
    ],
)
def test_best_model_is_the_one_whose_features_cluster_best(plain, across, best):
    models = [iteration_stage(number) for number in (1, 2, 3)]
    labellings = [
        clusters(silhouette=one, cross_camera_silhouette=other)
        for one, other in zip(plain, across, strict=True)
    ]
    assert best_model(models, labellings) == iteration_stage(best)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ClusterConfig(p=1e-3), [0.5]),  # before steps back
        (ClusterConfig(p=1e-3, refit_eps=True), None),
        (ClusterConfig(eps=0.5), None),  # as given
    ],
)
def test_kept_eps__is_the_first_iterations_before_steps_back(config, expected):
    first, second = clusters(eps=[0.4], first_eps=[0.5]), clusters(eps=[0.3], first_eps=[0.45])
    assert kept_eps([], config) is None
    assert kept_eps([first, second], config) == expected
    assert kept_eps([clusters(eps=[0.4])], config) == (expected and [0.4]), "of release 0.1"
