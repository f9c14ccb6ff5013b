"""Choosing a model and seeing collapse, and clusters that follow cameras, without identities."""

import pytest

from daal.config import ClusterConfig
from pipelines.run import label_health
from pipelines.run.label_health import as_found, best_model, converged, kept_eps, warnings

CONFIG = ClusterConfig(eps=0.5)
KEPT = {"notes": ["kept the previous labels: DBSCAN found 0 cluster(s) at eps=0.5"]}


def clusters(num_clusters: int = 100, **figures: object) -> dict:
    return {"num_clusters": num_clusters, **figures}


def test_warnings() -> None:
    assert warnings(clusters(), None, CONFIG) == []
    assert warnings(clusters(60, agreement=0.5), clusters(100), CONFIG) == []
    assert warnings(clusters(), clusters(), CONFIG) == []
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
def test_merging_clusters__the_setting_that_decides_on_eps(
    config: ClusterConfig, setting: str
) -> None:
    (merging,) = warnings(clusters(49, agreement=0.5), clusters(100), config)
    assert "49 clusters after 100" in merging and f"use a smaller {setting}," in merging


def test_kept_labels__say_so__and_are_no_convergence() -> None:
    # As release 0.1 wrote them: agreeing with themselves.
    kept = as_found(clusters(agreement=1.0, **KEPT))
    assert "agreement" not in kept and kept["kept"]
    assert not converged(kept, 0.95) and not converged(clusters(agreement=1.0, **KEPT), 0.95)
    (collapse,) = warnings(kept, clusters(), CONFIG)
    assert "no new labels" in collapse
    found = clusters(agreement=1.0, notes=["3 images have an exact copy among the others."])
    assert as_found(found) == {**found, "kept": False} and converged(found, 0.95)


def by_camera(alone: float, alone_chance: float, cross: float, cross_chance: float) -> dict:
    return clusters(
        one_camera_share=alone,
        one_camera_chance=alone_chance,
        cross_camera_share=cross,
        cross_camera_chance=cross_chance,
    )


@pytest.mark.parametrize(
    ("changed", "remedy"),
    [
        ({}, "use cluster.camera_norm=true or cluster.camera_aware=true."),
        ({"camera_norm": True}, "use cluster.camera_aware=true."),
        ({"camera_aware": True}, "use cluster.camera_norm=true."),
        ({"camera_norm": True, "search": "approximate"},
         "use cluster.camera_aware=true with cluster.search=exact."),
        ({"camera_norm": True, "camera_aware": True}, "use a better source model"),
    ],
)  # fmt: skip
def test_clusters_that_follow_cameras__have_a_remedy_that_is_left(
    changed: dict, remedy: str
) -> None:
    config = ClusterConfig(eps=0.5, **changed)
    (warning,) = warnings(
        by_camera(0.76, 0.07, 0.3, 0.5), None, config
    )  # also in the first iteration
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
def test_clusters_follow_cameras__by_far_more_than_chance_would(
    figures: tuple, follow: bool
) -> None:
    assert len(warnings(by_camera(*figures), None, CONFIG)) == follow


def test_best_model_is_the_one_whose_features_cluster_best() -> None:
    models = ["iteration-01", "iteration-02", "iteration-03"]
    silhouettes = [0.3, 0.5, 0.4]
    labellings = [clusters(silhouette=value) for value in silhouettes]
    assert best_model(models, labellings) == "iteration-02"
    assert best_model(models, [clusters(silhouette=0.5)] * 3) == "iteration-03"
    labellings[1] = clusters()  # none was found from its features
    assert best_model(models, labellings) == "iteration-03"


def test_best_model__across_cameras_where_all_labellings_say() -> None:
    models = ["iteration-01", "iteration-02", "iteration-03"]
    labellings = [
        clusters(silhouette=plain, cross_camera_silhouette=across)
        for plain, across in ((0.4, 0.3), (0.5, 0.0), (0.6, -0.1))
    ]
    assert best_model(models, labellings) == "iteration-01"
    kept = clusters(**KEPT)
    assert best_model(models, [kept, *labellings[1:]]) == "iteration-02"
    # Of one camera, or made by release 0.1.
    one_camera = [clusters(silhouette=0.4, cross_camera_silhouette=None), *labellings[1:]]
    assert best_model(models, one_camera) == "iteration-03"


@pytest.mark.parametrize(
    ("agreement", "enough"),
    [({"agreement": 0.96}, True), ({"agreement": 0.95}, False), ({}, False)],
)
def test_converged__above_the_agreement_that_is_asked_for(agreement: dict, enough: bool) -> None:
    assert converged(agreement, 0.95) == enough


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ClusterConfig(p=1e-3), [0.5]),  # before steps back
        (ClusterConfig(p=1e-3, refit_eps=True), None),
        (ClusterConfig(eps=0.5), None),  # as given
    ],
)
def test_kept_eps__is_the_first_iterations_before_steps_back(
    config: ClusterConfig, expected: list[float] | None
) -> None:
    first, second = clusters(eps=[0.4], first_eps=[0.5]), clusters(eps=[0.3], first_eps=[0.45])
    assert kept_eps([], config) is None
    assert kept_eps([first, second], config) == expected
    of_release_0_1 = clusters(eps=[0.4])
    assert kept_eps([of_release_0_1], config) == (expected and [0.4])


def test_the_note_that_says_so() -> None:
    assert KEPT["notes"][0].startswith(label_health.KEPT_NOTE)
