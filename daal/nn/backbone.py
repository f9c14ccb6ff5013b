"""The ResNet of Fig. 2, and the weights that it begins with."""

import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from daal.checkpoint import unpacked
from daal.config import IMAGENET_WEIGHTS, NetworkConfig
from daal.errors import CheckpointError
from daal.nn.batch_norm import BatchNorm2d
from daal.nn.ibn import add_instance_norm, has_instance_norm

_RESNET_NAME = re.compile(
    r"(conv1|bn1|layer[1-4]\.\d+\.(conv[1-3]|bn[1-3]|bn1\.(IN|BN)|downsample\.[01]))"
    r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)


class Backbone(NamedTuple):
    """All that the rest of the network knows of a backbone."""

    layers: nn.Sequential  # normalised images (B, 3, H, W) -> feature map (B, C, h, w)
    channels: int  # C
    stages: list[list[nn.Module]]  # of `layers`, in the order in which they may be frozen


def build_backbone(config: NetworkConfig) -> Backbone:
    """A ResNet with the weights that the configuration names.

    Raises CheckpointError if the weights can't be had or don't fit.
    """
    name = config.backbone
    resnet = getattr(torchvision.models, name)(weights=None, norm_layer=BatchNorm2d)
    if config.weights in IMAGENET_WEIGHTS:
        published = torchvision.models.get_model_weights(name)[IMAGENET_WEIGHTS[config.weights]]
        try:
            # By itself, torchvision would unpickle whatever lies in torch's cache.
            resnet.load_state_dict(published.get_state_dict(check_hash=True, weights_only=True))
        except OSError as error:
            raise CheckpointError(
                f"torchvision's ImageNet weights can't be downloaded ({error}); set "
                "network.weights to a local .safetensors or .pth file."
            ) from error
        except Exception as error:  # the reader raises nearly anything on a foreign file
            raise CheckpointError(
                f"{published.url.rpartition('/')[2]} in torch's cache is damaged or holds more "
                "than tensors; delete it there, or set network.weights to a local file."
            ) from error
    elif config.weights != "none":
        _load_backbone(resnet, Path(config.weights), config)
    if config.ibn == "a":
        add_instance_norm(resnet)  # after loading: plain weights are split
    if config.last_stride == 1:
        for module in resnet.layer4[0].modules():
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                module.stride = (1, 1)
    names = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    return Backbone(
        nn.Sequential(OrderedDict((name, getattr(resnet, name)) for name in names)),
        channels=resnet.fc.in_features,
        stages=[[resnet.conv1, resnet.bn1], *([getattr(resnet, name)] for name in names[4:])],
    )


def _load_backbone(resnet: nn.Module, path: Path, config: NetworkConfig) -> None:
    weights = load_backbone_weights(path)
    if has_instance_norm(weights):
        if config.ibn == "none":
            raise CheckpointError(f"{path} holds a ResNet with IBN layers; set network.ibn=a.")
        add_instance_norm(resnet)
    own = resnet.state_dict()
    wrong = [
        n
        for n in own
        if not n.startswith("fc.")
        and not n.endswith("num_batches_tracked")
        and (n not in weights or weights[n].shape != own[n].shape)
    ]
    if wrong:
        raise CheckpointError(
            f"{path} does not hold a {config.backbone}: {wrong[0]} is missing or of another shape; "
            "set network.backbone to the network that the file was made for."
        )
    resnet.load_state_dict({n: t for n, t in weights.items() if n in own}, strict=False)


def load_backbone_weights(path: Path | str) -> dict[str, Tensor]:
    """ImageNet weights of a ResNet under torchvision's names, without `fc`, on the CPU.

    Reads .safetensors, or .pth and .pt with torch's weights-only reader, which builds tensors and
    refuses every other object. Floating-point tensors come back as float32, whatever they were
    stored in; `num_batches_tracked` as it is.

    Raises CheckpointError if the file is missing, of another type, unreadable, or holds
    anything but such tensors.
    """
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        there = "isn't a file" if path.exists() else "doesn't exist"
        raise CheckpointError(
            f"weights file {path} {there}; give the path of a .safetensors or .pth file, or "
            f"set network.weights to {', '.join(IMAGENET_WEIGHTS)} or none (random weights)"
        )
    if path.suffix == ".safetensors":
        state = dict(unpacked(path.read_bytes(), path, "cpu"))
    elif path.suffix in (".pth", ".pt"):
        state = _read_weights_only(path)
    else:
        raise CheckpointError(
            f"weights file {path} has the type {path.suffix or '(none)'}, which isn't read; "
            "convert it to .safetensors"
        )
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    for name in state:
        if not _RESNET_NAME.fullmatch(name):
            raise CheckpointError(
                f"weights file {path} has a tensor named {name!r}, which no torchvision ResNet "
                "has; save the plain backbone's state_dict(), without prefixes"
            )
    if "conv1.weight" not in state:
        raise CheckpointError(
            f"weights file {path} has no conv1.weight; save the state_dict() of a torchvision "
            "ResNet"
        )
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


def _read_weights_only(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Whatever a foreign file makes the reader raise, the answer is the same: it isn't used.
        # The reader's own message advises to switch the protection off; it isn't passed on.
        raise CheckpointError(
            f"weights file {path} was refused because it is damaged or holds more than tensors; "
            "get a plain state_dict from a source you trust and save it as .safetensors"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided
        for name, tensor in state.items()
    ):
        raise CheckpointError(
            f"weights file {path} isn't a flat dictionary of tensors; save the backbone's "
            "state_dict() alone"
        )
    return {name: tensor.detach() for name, tensor in state.items()}
