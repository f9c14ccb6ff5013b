"""The domain adaptive attention module (DAAM): Eq. 1, Eq. 2 and Fig. 3.

Shapes: B batch, C channels, H height, W width of the backbone's feature map.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daal.config import AttentionConfig
from daal.nn.batch_norm import BatchNorm2d


def split_features(features_BCHW: Tensor, attention_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Domain-shared part A(F) x F (Eq. 1) and domain-specific part (1 - A(F)) x F (Eq. 2)."""
    shared_BCHW = attention_BCHW * features_BCHW
    # F - A x F is (1 - A) x F with one product less, and makes the two parts add up to F.
    return shared_BCHW, features_BCHW - shared_BCHW


def exchange_surroundings(features_BCHW: Tensor, attention_BCHW: Tensor, num_source: int) -> Tensor:
    """Feature maps of each image's person before the surroundings of another image.

    a F of an image, plus (1 - a) F of the image `num_source` rows further on, around the end:
    source images come first, so that each gets the surroundings of one of the target. a is A's mean
    over channels (B, 1, H, W). With A itself, some channels could be shared and the others
    specific, the same everywhere, and nothing would tell one place from another.

    Swapped parts of features, as in Lee et al., "Learning Debiased Representation via Disentangled
    Feature Augmentation", NeurIPS 2021, sec. 3.2, whose parts are vectors.
    """
    shared_BCHW, specific_BCHW = split_features(
        features_BCHW, attention_BCHW.mean(dim=1, keepdim=True)
    )
    return shared_BCHW + specific_BCHW.roll(-num_source, 0)


class AttentionMap(nn.Module):
    """A(F) of Fig. 3, in (0, 1): spatial attention, then channel attention.

    Spatial: a depthwise separable 3x3 convolution with stride 2 (paper) and c/2 outputs, resized
    bilinearly to the input. Channel: 1x1 convolutions to c/16 and back to c. BatchNorm
    follows each convolution, ReLU each but (by default) the last: a ReLU before the sigmoid
    would keep A at 0.5 or above.
    """

    def __init__(self, channels: int, config: AttentionConfig) -> None:
        super().__init__()
        spatial, squeezed = channels // 2, channels // 16  # as in the paper
        with_norm = config.norm_after_depthwise
        between = [BatchNorm2d(channels), nn.ReLU(inplace=True)] if with_norm else []
        self.depthwise = nn.Conv2d(
            channels, channels, 3, stride=config.stride, padding=1, groups=channels, bias=False
        )
        self.pointwise = nn.Sequential(
            *between,
            nn.Conv2d(channels, spatial, 1, bias=False),
            BatchNorm2d(spatial),
            nn.ReLU(inplace=True),
        )
        self.channel = nn.Sequential(
            nn.Conv2d(spatial, squeezed, 1, bias=False),
            BatchNorm2d(squeezed),
            nn.ReLU(inplace=True),
            nn.Conv2d(squeezed, channels, 1, bias=False),
        )
        self.last_norm = BatchNorm2d(channels)
        self.relu_before_sigmoid = config.relu_before_sigmoid
        self.pool_channels = config.pool_channels
        if config.zero_init:
            nn.init.zeros_(self.last_norm.weight)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        if features_BCHW.device.type == "cpu":
            # In torch 2.15 the bf16 channels_last gradient of this layer's weight is garbage, and
            # finite, where the map is one pixel wide.
            with torch.autocast("cpu", enabled=False):
                spatial_BCHW = self.depthwise(features_BCHW.float())
        else:
            spatial_BCHW = self.depthwise(features_BCHW)
        spatial_BCHW = F.interpolate(
            self.pointwise(spatial_BCHW),
            size=features_BCHW.shape[-2:],
            mode="bilinear",
            align_corners=False,
        )
        if self.pool_channels:
            spatial_BCHW = spatial_BCHW.mean(dim=(2, 3), keepdim=True)
        scores_BCHW = self.last_norm(self.channel(spatial_BCHW))
        if self.relu_before_sigmoid:
            scores_BCHW = F.relu(scores_BCHW)
        return torch.sigmoid(scores_BCHW).expand_as(features_BCHW)


class DomainAdaptiveAttention(nn.Module):
    """One attention map, split residually: what isn't shared is specific (Eq. 1-2).

    Forward takes features_BCHW and returns (shared_BCHW, specific_BCHW, attention_BCHW).
    """

    def __init__(self, channels: int, config: AttentionConfig) -> None:
        super().__init__()
        self.attention = AttentionMap(channels, config)

    def forward(self, features_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention_BCHW = self.attention(features_BCHW)
        shared_BCHW, specific_BCHW = split_features(features_BCHW, attention_BCHW)
        return shared_BCHW, specific_BCHW, attention_BCHW


class IndependentAttention(nn.Module):
    """Two attention maps without the residual tie: "IA" of Table 4."""

    def __init__(self, channels: int, config: AttentionConfig) -> None:
        super().__init__()
        self.shared = AttentionMap(channels, config)
        self.specific = AttentionMap(channels, config)

    def forward(self, features_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention_BCHW = self.shared(features_BCHW)
        specific_BCHW = self.specific(features_BCHW) * features_BCHW
        return attention_BCHW * features_BCHW, specific_BCHW, attention_BCHW


class NoAttention(nn.Module):
    """Both branches see the whole feature map: "DSH+DSP" of Table 4."""

    def forward(self, features_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return features_BCHW, features_BCHW, torch.ones_like(features_BCHW)


def attention_module(channels: int, config: AttentionConfig) -> nn.Module:
    """Feature map (B, C, H, W) -> its shared and specific part, and A; all of the same shape."""
    if config.mode == "none":
        return NoAttention()
    module = DomainAdaptiveAttention if config.mode == "residual" else IndependentAttention
    return module(channels, config)
