"""Choosing a model and seeing collapse without identities."""

import pytest

from pipelines.label_health import best_model, converged, warnings


def clusters(num_clusters: int = 100, **figures: float) -> dict:
    return {"num_clusters": num_clusters, **figures}


def test_warnings() -> None:
    assert warnings(clusters(), None) == []
    assert warnings(clusters(60, agreement=0.5), clusters(100)) == []
    (merging,) = warnings(clusters(49, agreement=0.5), clusters(100))
    assert "49 clusters after 100" in merging
    (undoing,) = warnings(clusters(agreement=0.05), clusters())
    assert "0.05" in undoing and "learning rate" in undoing
    assert warnings(clusters(), clusters()) == []  # the last labels were kept


def test_best_model_is_the_one_whose_features_cluster_best() -> None:
    models = ["iteration-01", "iteration-02", "iteration-03"]
    silhouettes = [0.3, 0.5, 0.4]
    labellings = [clusters(silhouette=value) for value in silhouettes]
    assert best_model(models, labellings) == "iteration-02"
    assert best_model(models, [clusters(silhouette=0.5)] * 3) == "iteration-03"
    labellings[1] = clusters()  # none was found from its features
    assert best_model(models, labellings) == "iteration-03"


@pytest.mark.parametrize(
    ("agreement", "enough"),
    [({"agreement": 0.96}, True), ({"agreement": 0.95}, False), ({}, False)],
)
def test_converged__above_the_agreement_that_is_asked_for(agreement: dict, enough: bool) -> None:
    assert converged(agreement, 0.95) == enough
