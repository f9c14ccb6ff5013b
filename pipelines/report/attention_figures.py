"""Whether the attention finds people, measured against masks that show them.

Shapes: B images, C channels, h x w cells of the feature map, H x W pixels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

TINY = 1e-12  # in place of the length of a cell whose features are all 0


@dataclass(frozen=True)
class AttentionFigures:
    """Means over images. An AUC is the chance that a pixel of the person has a higher value than
    one of the surroundings: 1 finds people, 0.5 is chance, 0 finds all but people."""

    attention_auc: float  # of A, weighted by energy: |A F| / |F|, norms over channels
    features_auc: float  # of |F|
    shared_auc: float  # of |A F|, the shared part
    specific_auc: float  # of the specific part
    attention_std: float  # of |A F| / |F| over the cells of an image

    @property
    def separation(self) -> float:
        """How far the shared part is on people, and the specific one elsewhere: -1 to 1."""
        return self.shared_auc - self.specific_auc


def energy_share(part_BChw: Tensor, features_BChw: Tensor) -> Tensor:
    """|A F| / |F| of a part A F of the features F, norms over channels: float32 (B, h, w)."""
    lengths_Bhw = features_BChw.float().norm(dim=1).clamp(min=TINY)
    return part_BChw.float().norm(dim=1) / lengths_Bhw


def attention_figures(
    features_BChw: Tensor, shared_BChw: Tensor, specific_BChw: Tensor, masks_BHW: NDArray[np.bool_]
) -> AttentionFigures:
    """Figures of one batch's feature maps: F, A x F (Eq. 1) and the specific part (Eq. 2).

    Masks are true where the person is, of any resolution; the maps are resized to it bilinearly.
    An image whose mask is the same everywhere doesn't count.
    """
    counts = np.array([0 < mask.mean() < 1 for mask in masks_BHW])  # roc_auc_score needs both
    maps = [each[counts] for each in (features_BChw, shared_BChw, specific_BChw)]
    features_Bhw, shared_Bhw, specific_Bhw = (each.float().norm(dim=1) for each in maps)
    attention_Bhw = energy_share(maps[1], maps[0])

    def auc(map_Bhw: Tensor) -> float:
        size = masks_BHW.shape[1:]
        pixels_BHW = F.interpolate(map_Bhw[:, None], size, mode="bilinear")[:, 0].cpu().numpy()
        pairs = zip(masks_BHW[counts], pixels_BHW, strict=True)
        return float(
            np.mean([roc_auc_score(mask.ravel(), pixels.ravel()) for mask, pixels in pairs])
        )

    return AttentionFigures(
        attention_auc=auc(attention_Bhw),
        features_auc=auc(features_Bhw),
        shared_auc=auc(shared_Bhw),
        specific_auc=auc(specific_Bhw),
        attention_std=float(attention_Bhw.flatten(1).std(dim=1, correction=0).mean()),
    )
