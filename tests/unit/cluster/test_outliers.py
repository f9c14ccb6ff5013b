import numpy as np

from cluster.outliers import with_singletons


def test_outliers_among_the_rows_are_numbered_behind_the_clusters() -> None:
    labels = np.array([1, -1, 0, -1, -1, 1])
    found = with_singletons(labels, np.array([0, 1, 2, 4, 5]))
    assert found.tolist() == [1, 2, 0, -1, 3, 1]  # the fourth is no training image
    assert labels.tolist() == [1, -1, 0, -1, -1, 1]


def test_all_outliers() -> None:
    assert with_singletons(np.full(3, -1), np.arange(3)).tolist() == [0, 1, 2]
