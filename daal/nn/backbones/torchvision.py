"""torchvision's ResNets: the backbones of the paper and of its peers."""

from collections import OrderedDict
from pathlib import Path

import torchvision
from torch import Tensor, nn

from daal.config import IMAGENET_WEIGHTS, InputConfig, NetworkConfig
from daal.data.augment import IMAGENET
from daal.errors import CheckpointError, ConfigError
from daal.nn.backbone import Backbone
from daal.nn.batch_norm import BatchNorm2d
from daal.nn.ibn import add_instance_norm, has_instance_norm
from daal.nn.published_weights import RESNET_NAME
from daal.nn.weights_file import read_weights


def build(name: str, config: NetworkConfig, input: InputConfig) -> Backbone:
    """A ResNet; see `daal.nn.backbone.build_backbone`."""
    if config.pooling == "cls":
        raise ConfigError(
            f"network.pooling=cls needs a backbone with a class token, which {name} hasn't; take "
            "gap or gem."
        )
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
    elif config.weights_file:
        _load_resnet(resnet, Path(config.weights_file), config)
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
        num_rows=input.height // (16 if config.last_stride == 1 else 32),
        statistics=IMAGENET,
        stages=[["conv1", "bn1"], ["layer1"], ["layer2"], ["layer3"], ["layer4"]],
    )


def _load_resnet(resnet: nn.Module, path: Path, config: NetworkConfig) -> None:
    weights = load_resnet_weights(path)
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


def load_resnet_weights(path: Path | str) -> dict[str, Tensor]:
    """The weights of a ResNet under torchvision's names, without `fc`; see `read_weights`.

    Raises CheckpointError if the file has a name that no torchvision ResNet has, or is none.
    """
    state = read_weights(path)
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    for name in state:
        if not RESNET_NAME.fullmatch(name):
            raise CheckpointError(
                f"weights file {path} has a tensor named {name!r}, which no torchvision ResNet "
                f"has; convert it: daal convert {path} --out weights.safetensors"
            )
    if "conv1.weight" not in state:
        raise CheckpointError(
            f"weights file {path} has no conv1.weight; save the state_dict() of a torchvision "
            "ResNet"
        )
    return state
