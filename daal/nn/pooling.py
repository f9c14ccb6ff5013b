"""From a feature map to a feature: pooling, and the neck after it.

Shapes: B images, C channels, H x W pixels of the feature map.
"""

import torch
from torch import Tensor, nn

from daal.nn.batch_norm import BatchNorm2d


class AveragePooling(nn.Module):
    """The paper's global average pooling: (B, C, H, W) -> (B, C), in float32."""

    def forward(self, features_BCHW: Tensor) -> Tensor:
        return features_BCHW.float().mean(dim=(2, 3))  # under autocast a bf16 mean would round


class GeneralizedMeanPooling(nn.Module):
    """(mean over H, W of x^p)^(1/p), p learned: (B, C, H, W) -> (B, C), in float32.

    GeM of Radenović, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation",
    TPAMI 2019, Eq. 3, with one p for all channels, 3 at the start. p = 1 is average pooling, and
    p towards infinity the maximum. Values below `SMALLEST` count as that: a power needs them
    positive, and its gradient finite.
    """

    SMALLEST = 1e-6

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, features_BCHW: Tensor) -> Tensor:
        # In bf16 a cube has lost most of its digits, and SMALLEST cubed would be 0 in fp16.
        powers_BCHW = features_BCHW.float().clamp(min=self.SMALLEST).pow(self.p)
        return powers_BCHW.mean(dim=(2, 3)).pow(1 / self.p)


class BatchNormNeck(nn.Module):
    """BatchNorm between the pooled feature and the identity heads: (B, C) -> (B, C).

    BNNeck of Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person
    Re-identification", CVPR Workshops 2019: the bias stays 0, so that the classes stay around
    the origin. The feature after the neck is the one that is matched and clustered, as in SpCL
    (Ge et al. 2020) and Cluster Contrast (Dai et al. 2021).
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        # 2d: workers in groups and domains are handled by what handles the other BatchNorms.
        self.norm = BatchNorm2d(num_features)
        self.norm.bias.requires_grad_(False)

    def forward(self, features_BC: Tensor) -> Tensor:
        normalised_BC11: Tensor = self.norm(features_BC[:, :, None, None])
        return normalised_BC11.flatten(1)
