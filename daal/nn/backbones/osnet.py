"""OSNet, which trackers use: network.backbone=osnet:x1_0, x0_75, x0_5 or x0_25.

Zhou et al., "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019, Table 1 and
Fig. 4. Tensors are named as in torchreid, the authors' code, so that its weights load.

Shapes: B images, C channels, h x w places of the map.
"""

import torch
from torch import Tensor, nn

from daal.config import InputConfig, NetworkConfig
from daal.data.augment import IMAGENET
from daal.errors import CheckpointError, ConfigError
from daal.nn.backbone import Backbone
from daal.nn.batch_norm import BatchNorm2d
from daal.nn.weights_file import read_weights

CHANNELS = {  # after conv1, conv2, conv3, and conv4 and conv5
    "x1_0": (64, 256, 384, 512),
    "x0_75": (48, 192, 288, 384),
    "x0_5": (32, 128, 192, 256),
    "x0_25": (16, 64, 96, 128),
}
STRIDE = 16


def build(name: str, config: NetworkConfig, input: InputConfig) -> Backbone:
    """An OSNet; see `daal.nn.backbone.build_backbone`."""
    shown = f"network.backbone=osnet:{name}"
    if name not in CHANNELS:
        raise ConfigError(f"{shown} is unknown; take one of osnet:{', osnet:'.join(CHANNELS)}.")
    for key, value, usual in (
        ("last_stride", config.last_stride, 2), ("ibn", config.ibn, "none"),
    ):  # fmt: skip
        if value != usual:
            raise ConfigError(f"network.{key}={value} is made for ResNets; set it to {usual}.")
    if config.pooling == "cls":
        raise ConfigError(
            f"network.pooling=cls needs a class token, which {shown} lacks; take gap."
        )
    layers = OSNet(*CHANNELS[name])
    if config.weights_file:
        _load(layers, config.weights_file, name)
    return Backbone(
        layers,
        channels=CHANNELS[name][-1],
        num_rows=input.height // STRIDE,
        statistics=IMAGENET,
        stages=[[f"conv{number}"] for number in (1, 2, 3, 4, 5)],
    )


def _load(layers: nn.Module, path: str, name: str) -> None:
    weights = read_weights(path)
    heads = ("fc.", "classifier.")
    state = {n: t for n, t in weights.items() if not n.startswith(heads)}
    try:
        layers.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{path} does not hold an osnet:{name} ({reason}); set network.backbone to the network "
            "that the file was made for."
        ) from error


class OSNet(nn.Module):
    """Normalised images (B, 3, H, W) -> feature map (B, C, H/16, W/16)."""

    def __init__(self, first: int, second: int, third: int, last: int) -> None:
        super().__init__()
        self.conv1 = Convolution(3, first, size=7, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = _stage(first, second, halves=True)
        self.conv3 = _stage(second, third, halves=True)
        self.conv4 = _stage(third, last, halves=False)
        self.conv5 = Convolution(last, last)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(images_BCHW))
        map_BCHW: Tensor = self.conv5(self.conv4(self.conv3(self.conv2(x))))
        return map_BCHW


class Convolution(nn.Module):
    """Convolution, BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
        self.bn = BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        output_BCHW: Tensor = self.relu(self.bn(self.conv(features_BCHW)))
        return output_BCHW


class LightConvolution(nn.Module):
    """ "Lite 3x3" of Fig. 3: a 1x1 convolution, then one of 3x3 for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        output_BCHW: Tensor = self.relu(self.bn(self.conv2(self.conv1(features_BCHW))))
        return output_BCHW


class ChannelGate(nn.Module):
    """Weights of channels by the whole image (the aggregation gate, Eq. 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        hidden_BC11 = self.fc1(features_BCHW.mean((2, 3), keepdim=True)).relu()
        weights_BC11: Tensor = self.fc2(hidden_BC11).sigmoid()
        return features_BCHW * weights_BC11


class OmniScaleBlock(nn.Module):
    """Streams of one to four light convolutions, added up by one gate for all (Fig. 4)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        middle = outputs // 4
        self.conv1 = Convolution(inputs, middle)
        self.conv2a = LightConvolution(middle)
        self.conv2b, self.conv2c, self.conv2d = (
            nn.Sequential(*(LightConvolution(middle) for _ in range(length)))
            for length in (2, 3, 4)
        )
        self.gate = ChannelGate(middle)
        self.conv3 = _linear(middle, outputs)
        self.downsample = _linear(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, features_BCHW: Tensor) -> Tensor:
        x = self.conv1(features_BCHW)
        streams = (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
        x = torch.stack([self.gate(stream(x)) for stream in streams]).sum(0)
        output_BCHW: Tensor = (self.conv3(x) + self.downsample(features_BCHW)).relu()
        return output_BCHW


def _linear(inputs: int, outputs: int) -> nn.Sequential:
    """A 1x1 convolution and BatchNorm, without ReLU."""
    layers = nn.Sequential()
    layers.add_module("conv", nn.Conv2d(inputs, outputs, 1, bias=False))
    layers.add_module("bn", BatchNorm2d(outputs))
    return layers


def _stage(inputs: int, outputs: int, halves: bool) -> nn.Sequential:
    blocks = [OmniScaleBlock(inputs, outputs), OmniScaleBlock(outputs, outputs)]
    half = [nn.Sequential(Convolution(outputs, outputs), nn.AvgPool2d(2))] if halves else []
    return nn.Sequential(*blocks, *half)
