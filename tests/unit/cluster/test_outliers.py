import numpy as np
import pytest

from cluster.outliers import in_all_parts, with_singletons
from daal.errors import LabelError


def test_outliers_among_the_rows_are_numbered_after_the_clusters():
    labels = np.array([1, -1, 0, -1, -1, 1])
    found = with_singletons(labels, np.array([0, 1, 2, 4, 5]))
    assert found.tolist() == [1, 2, 0, -1, 3, 1]  # the fourth is no training image
    assert labels.tolist() == [1, -1, 0, -1, -1, 1]


def test_an_outlier_of_any_part_is_one_of_all__and_clusters_are_renumbered():
    labels = np.array([[0, 2], [1, 0], [1, -1], [-1, 1], [2, 0]])
    found = in_all_parts(labels, "cluster.p").tolist()
    assert found == [[0, 1], [1, 0], [-1, -1], [-1, -1], [2, 0]]
    only = np.array([[0], [-1], [1]])
    assert np.array_equal(in_all_parts(only, "cluster.p"), only)
    with pytest.raises(
        LabelError, match=r"no image is in a cluster of each part.*raise cluster\.p,"
    ):
        in_all_parts(np.array([[0, -1], [-1, 0]]), "cluster.p")
