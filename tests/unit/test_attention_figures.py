"""The measure of the attention: on attentions made by hand."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from daal.nn.attention import split_features
from pipelines.report.attention_figures import AttentionFigures, attention_figures


def figures_of(attention_Bhw: torch.Tensor, masks_BHW: NDArray[np.bool_]) -> AttentionFigures:
    """Of features that are alike everywhere, in three channels."""
    features_BChw = torch.full((len(masks_BHW), 3, *attention_Bhw.shape[1:]), 2.0)
    shared_BChw, specific_BChw = split_features(features_BChw, attention_Bhw[:, None])
    return attention_figures(features_BChw, shared_BChw, specific_BChw, masks_BHW)


@pytest.fixture
def masks_BHW() -> NDArray[np.bool_]:
    masks = np.zeros((2, 8, 4), bool)
    masks[0, 2:7, 1:3] = masks[1, :4, 2:] = True
    return masks


def test_attention_on_the_person__off_it__and_everywhere(masks_BHW: NDArray[np.bool_]) -> None:
    person = torch.from_numpy(masks_BHW).float()
    found = figures_of(person, masks_BHW)
    assert (found.attention_auc, found.shared_auc, found.specific_auc) == (1, 1, 0)
    assert found.features_auc == 0.5 and found.separation == 1
    shares = np.array([10 / 32, 8 / 32])
    assert found.attention_std == pytest.approx(np.sqrt(shares * (1 - shares)).mean())

    found = figures_of(1 - person, masks_BHW)
    assert (found.attention_auc, found.separation) == (0, -1)
    found = figures_of(torch.full_like(person, 0.3), masks_BHW)
    assert (found.attention_auc, found.separation, found.attention_std) == (0.5, 0, 0)


def test_a_constant_attention__leaves_the_features_as_they_are(
    masks_BHW: NDArray[np.bool_],
) -> None:
    torch.manual_seed(0)
    features = torch.rand(2, 3, 8, 4)
    found = attention_figures(features, 0.3 * features, 0.7 * features, masks_BHW)
    assert found.shared_auc == pytest.approx(found.features_auc)
    assert found.separation == pytest.approx(0, abs=1e-6)


def test_coarse_maps_are_resized__and_images_without_a_person_do_not_count() -> None:
    masks = np.zeros((2, 16, 8), bool)
    masks[0, :8] = True
    attention = torch.tensor([[[0.9], [0.1]], [[0.1], [0.9]]])
    found = figures_of(attention, masks)
    assert found.attention_auc == 1
    assert found.attention_std == pytest.approx(0.4)
