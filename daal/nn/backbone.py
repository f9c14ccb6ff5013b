"""What the rest of the program knows of a backbone, and how it finds one.

`network.backbone=FAMILY:NAME` is the network NAME of `daal/nn/backbones/FAMILY.py`, and a name
alone is torchvision's. Such a file has one function, which `build_backbone` calls:

    def build(name: str, config: NetworkConfig, input: InputConfig) -> Backbone
"""

from dataclasses import dataclass
from importlib import import_module

from torch import nn

from daal.config import InputConfig, NetworkConfig, family_and_name
from daal.data.augment import ChannelStatistics
from daal.errors import ConfigError


@dataclass(frozen=True)
class Backbone:
    """A network up to its last feature map.

    layers: normalised images (B, 3, H, W) -> feature map (B, C, h, w). A training step gives each
    of its parameters a gradient, and draws no random numbers. BatchNorms are those of
    `daal.nn.batch_norm`, so that workers can share their statistics, and domains have their own.
    channels: C. num_rows: h, of images of the input's size. statistics: of the images that its
    weights were made with. stages: its parts from the image to the map, each as the names in
    `layers` of the modules and parameters that it consists of.
    """

    layers: nn.Module
    channels: int
    num_rows: int
    statistics: ChannelStatistics
    stages: list[list[str]]


def build_backbone(config: NetworkConfig, input: InputConfig) -> Backbone:
    """The backbone of the configuration, for images of the input's size, with its weights.

    Raises:
        ConfigError: the family has no such network, or it can't do what is asked of it.
        CheckpointError: its weights can't be had or don't fit.
    """
    family, name = family_and_name(config.backbone)
    backbone: Backbone = import_module(f"daal.nn.backbones.{family}").build(name, config, input)
    if config.frozen_stages >= len(backbone.stages):
        raise ConfigError(
            f"network.frozen_stages={config.frozen_stages} leaves nothing of {config.backbone} to "
            f"train, which has {len(backbone.stages)} stages; lower it."
        )
    if config.stripes > backbone.num_rows:
        raise ConfigError(
            f"network.stripes={config.stripes} needs a feature map of as many rows; "
            f"network.backbone={config.backbone} with input.height={input.height} gives "
            f"{backbone.num_rows}: use fewer stripes or larger images."
        )
    return backbone
