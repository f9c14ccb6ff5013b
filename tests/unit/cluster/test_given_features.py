"""Features in whatever form a caller of the Python functions has them."""

import numpy as np
import pytest
import reference
import torch

from cluster.estimate import estimate_pseudo_labels
from cluster.given_features import number_matrix
from daal.config import ClusterConfig
from daal.errors import ConfigError, LabelError

CONFIG = ClusterConfig(k1=10, k2=3, q=6)
FEATURES = reference.drawn(120, 16, 10, seed=1, noise=0.1)


@pytest.mark.parametrize(
    "given",
    [
        FEATURES.tolist(),
        list(torch.tensor(FEATURES)),
        torch.tensor(FEATURES, requires_grad=True),
        torch.tensor(FEATURES).bfloat16(),
        torch.tensor(FEATURES).half(),
        np.repeat(FEATURES, 2, axis=1)[:, ::2],
    ],
    ids=["lists", "list of tensors", "with gradient", "bf16", "half", "strided"],
)
def test_forms_of_features(given):
    expected = estimate_pseudo_labels(FEATURES, CONFIG)
    assert np.array_equal(estimate_pseudo_labels(given, CONFIG).labels, expected.labels)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (FEATURES[:, :, None, None], r"not \(120, 16, 1, 1\) \(x\.reshape\(len\(x\), -1\)"),
        (FEATURES[0], r"not \(16,\)"),
        ([[1.0, 2.0], [1.0]], "differ in length"),
        ([["a", "b"]], "real numbers, not <U1"),
        (FEATURES.astype(complex), "real numbers, not complex"),
        (None, r"not \(\)"),
    ],
    ids=["maps", "one row", "ragged", "words", "complex", "nothing"],
)
def test_what_is_no_matrix_of_numbers_is_told_in_a_sentence(given, said):
    with pytest.raises(LabelError, match=said):
        number_matrix(given)


def test_cameras_of_other_images_are_refused():
    with pytest.raises(ConfigError, match=r"camids of shape \(3,\) for 120 features"):
        estimate_pseudo_labels(FEATURES, CONFIG, camids_N=[1, 2, 3])


@pytest.mark.parametrize("name", ["camera_norm", "camera_aware"])
def test_an_unknown_camera_is_refused_where_cameras_are_needed(name):
    config = CONFIG.model_copy(update={name: True})
    camids = np.arange(120) % 2
    camids[7] = -1
    with pytest.raises(ConfigError, match="there are 119 camids for 120 features"):
        estimate_pseudo_labels(FEATURES, config, camids_N=camids)
