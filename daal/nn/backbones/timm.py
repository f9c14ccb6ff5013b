"""The networks of timm (pip install timm), by its names: network.backbone=timm:NAME.

A network is first made and run without memory, on torch's device "meta". What its map looks like,
which of its parts come after the map, and what a stride of 1 changes, is seen there and not known
by name.

Shapes: B images, H x W pixels, C channels, h x w places of the map, L tokens.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from daal.config import PRETRAINED, InputConfig, NetworkConfig
from daal.data.augment import ChannelStatistics
from daal.errors import CheckpointError, ConfigError, first_line
from daal.load_config import did_you_mean
from daal.nn.backbone import Backbone
from daal.nn.batch_norm import BatchNorm2d
from daal.nn.weights_file import read_weights


def build(name: str, config: NetworkConfig, input: InputConfig) -> Backbone:
    """A network of timm; see `daal.nn.backbone.build_backbone`."""
    shown = f"network.backbone=timm:{name}"
    if config.ibn != "none":
        raise ConfigError(
            f"network.ibn={config.ibn} is made for the blocks of torchvision's ResNets; leave it "
            f"out with {shown}."
        )
    model = _create(name, input, config.weights)
    facts = _look_at(name, input.height, input.width, config.pooling == "cls", config.last_stride)
    for path in facts.without_stride:
        _without_stride(model, path)
    for path in facts.unused:
        model.set_submodule(path, nn.Identity())
    stage_of = _stage_of_parameters(model, facts.map_of_tokens)
    _take_own_batch_norms(model)
    if others := [m for m in model.modules() if isinstance(m, _BatchNorm) and not _is_own(m)]:
        raise ConfigError(
            f"{shown} has layers of the kind {type(others[0]).__name__}, whose statistics workers "
            "can't share; choose another backbone."
        )
    statistics = ChannelStatistics(*(tuple(model.pretrained_cfg[key]) for key in ("mean", "std")))
    return Backbone(
        layers=TimmLayers(model, facts),
        channels=facts.channels,
        num_rows=facts.size[0],
        statistics=statistics,
        stages=_stages(model, stage_of),
    )


class _Facts(NamedTuple):
    """How a network gives its map, the modules that don't contribute to it, and the layers whose
    stride is to be 1."""

    channels: int
    size: tuple[int, int]  # h, w
    map_of_tokens: bool
    channels_last: bool  # (B, h, w, C)
    num_prefix_tokens: int
    class_token: bool  # the map is the class token, of one place
    unused: tuple[str, ...] = ()
    without_stride: tuple[str, ...] = ()

    def map_of(self, features: Tensor) -> Tensor:
        """What timm's `forward_features` gives, as a map (B, C, h, w)."""
        if self.class_token:
            return features[:, 0, :, None, None]
        if self.map_of_tokens:
            tokens_BLC = features[:, self.num_prefix_tokens :]
            tokens_BCL = tokens_BLC.transpose(1, 2)
            return tokens_BCL.reshape(-1, self.channels, *self.size)
        return features.permute(0, 3, 1, 2) if self.channels_last else features


class TimmLayers(nn.Module):
    """Normalised images (B, 3, H, W) -> feature map (B, C, h, w)."""

    def __init__(self, model: nn.Module, facts: _Facts) -> None:
        super().__init__()
        self.timm = model
        self._facts = facts

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self._facts.map_of(self.timm.forward_features(images_BCHW))  # type: ignore[operator]


# ---- Making a network -------------------------------------------------------------------


def _create(name: str, input: InputConfig, weights: str = "none") -> Any:
    """timm's network without its classifier, with weights: `network.weights`.

    Raises ConfigError if there is no such network or it can't take such images, and
    CheckpointError if the weights can't be had or don't fit.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"network.backbone=timm:{name} needs the package timm ({error}): "
            "pip install 'daal-reid[timm]'."
        ) from error
    if not timm.is_model(name):  # such names as hf-hub:..., which would be downloaded, neither
        hint = did_you_mean(name, timm.list_models()) or "see timm.list_models()."
        raise ConfigError(f"network.backbone=timm:{name} is no network of timm; {hint}")
    settings: dict[str, Any] = {"num_classes": 0, "global_pool": ""}
    if weights not in (PRETRAINED, "none"):
        classifier = timm.get_pretrained_cfg_value(name, "classifier") or ()
        names = (classifier,) if isinstance(classifier, str) else classifier
        state = read_weights(weights)
        state = {n: t for n, t in state.items() if n.rpartition(".")[0] not in names}
        # timm translates older names, and fits positions to the input.
        overlay = {"state_dict": state, "num_classes": 0, "label_offset": 0, "custom_load": False}
        settings["pretrained_cfg_overlay"] = overlay
    settings["pretrained"] = weights != "none"
    try:
        try:
            model = timm.create_model(name, img_size=(input.height, input.width), **settings)
        except TypeError:  # most convolutional networks take any size, and no img_size
            model = timm.create_model(name, **settings)
    except Exception as error:  # of any type, from some hundred files
        reason = " ".join(str(error).split())[:300]
        if weights == "none":
            raise _unfit(name, input, reason) from error
        if weights == PRETRAINED:
            raise CheckpointError(
                f"timm's weights of {name} can't be had ({reason}); set network.weights to a local "
                "file with timm's names."
            ) from error
        raise CheckpointError(
            f"{weights} does not hold a timm:{name} ({reason}); set network.backbone to the "
            "network that the file was made for."
        ) from error
    # By itself, timm would cut off what is left over.
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
    if input.height % patch[0] or input.width % patch[1]:
        raise _unfit(name, input, f"it cuts them into patches of {patch[0]}x{patch[1]} pixels")
    for module in model.modules():  # DropPath too: what is drawn in training isn't saved with a run
        if "drop" in type(module).__name__.lower():
            for rate in {"p", "drop_prob"} & vars(module).keys():
                setattr(module, rate, 0.0)
    return model


def _unfit(name: str, input: InputConfig, reason: str) -> ConfigError:
    return ConfigError(
        f"network.backbone=timm:{name} can't take images of input.height={input.height} and "
        f"input.width={input.width} ({reason}); choose other sizes, such as multiples of its "
        "patches, or another backbone."
    )


def _is_own(module: nn.Module) -> bool:
    return type(module) is BatchNorm2d


def _take_own_batch_norms(model: nn.Module) -> None:
    """Put `daal.nn.batch_norm.BatchNorm2d` in the place of others, with the same tensors.

    timm's BatchNormAct2d becomes a BatchNorm and what it does after it.
    """
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if not isinstance(layer, nn.BatchNorm2d) or layer.weight is None:
                continue
            norm = BatchNorm2d(layer.num_features, layer.eps, layer.momentum)
            norm.weight, norm.bias = layer.weight, layer.bias
            for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                setattr(norm, buffer, getattr(layer, buffer))
            after = [(n, m) for n, m in layer.named_children() if not isinstance(m, nn.Identity)]
            own = nn.Sequential(OrderedDict([("norm", norm), *after])) if after else norm
            parent.add_module(name, own)


# ---- Looking at a network ---------------------------------------------------------------


@lru_cache
@torch.inference_mode(False)
@torch.enable_grad()
def _look_at(name: str, height: int, width: int, class_token: bool, last_stride: int) -> _Facts:
    """Run the network on images without memory.

    Raises ConfigError if it gives no map, or can't have a last stride of 1.
    """
    input = InputConfig(height=height, width=width)
    # What is drawn after this is the same, whether the network was looked at before or not.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = _create(name, input)
    features = _forward(model, name, input)
    facts = _facts_of(model, name, features, class_token)
    if last_stride == 1:
        without_stride = _halving_last(model, name, input, facts)
        for path in without_stride:
            _without_stride(model, path)
        features = _forward(model, name, input)
        larger = _facts_of(model, name, features, class_token)
        if larger.size != (2 * facts.size[0], 2 * facts.size[1]):
            raise ConfigError(
                f"network.last_stride=1 can't be had from timm:{name}, whose map isn't halved last "
                "by layers that could as well have stride 1; leave it out."
            )
        facts = larger._replace(without_stride=without_stride)
    facts.map_of(features).sum().backward()  # type: ignore[no-untyped-call]
    used = {n for n, p in model.named_parameters() if p.grad is not None}
    return facts._replace(unused=tuple(_whole_modules(model, lambda n: n not in used)))


def _forward(model: Any, name: str, input: InputConfig) -> Tensor:
    images_BCHW = torch.empty(2, 3, input.height, input.width, device="meta")
    try:
        features = model.forward_features(images_BCHW)
    except Exception as error:
        raise _unfit(name, input, first_line(error)) from error
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise ConfigError(
            f"network.backbone=timm:{name} doesn't give one map; choose another backbone."
        )
    return features


def _facts_of(model: Any, name: str, features: Tensor, class_token: bool) -> _Facts:
    num_prefix_tokens = getattr(model, "num_prefix_tokens", 0)
    if class_token and getattr(model, "cls_token", None) is None:
        raise ConfigError(
            f"network.pooling=cls needs a backbone with a class token, which timm:{name} hasn't; "
            "take gap or gem."
        )
    if features.ndim == 3:
        height, width = getattr(getattr(model, "patch_embed", None), "grid_size", (0, 0))
        if features.shape[1] != num_prefix_tokens + height * width:
            raise ConfigError(
                f"network.backbone=timm:{name} gives {features.shape[1]} tokens, which are no map "
                "of the image; choose another backbone."
            )
        size = (1, 1) if class_token else (height, width)
        return _Facts(features.shape[2], size, True, False, num_prefix_tokens, class_token)
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    shape = features.permute(0, 3, 1, 2).shape if channels_last else features.shape
    return _Facts(shape[1], (shape[2], shape[3]), False, channels_last, 0, False)


def _halving_last(model: Any, name: str, input: InputConfig, facts: _Facts) -> tuple[str, ...]:
    """Names of the layers of stride 2 that halve the map last."""
    found: list[str] = []
    for path, module in model.named_modules():
        if getattr(module, "stride", 1) in (2, (2, 2)):
            module.register_forward_hook(_note_if_of_size(facts.size, found, path))
    _forward(model, name, input)
    return tuple(found)


def _note_if_of_size(size: tuple[int, int], found: list[str], path: str) -> Callable[..., None]:
    def hook(module: nn.Module, given: Any, output: Tensor) -> None:
        if tuple(output.shape[-2:]) == size:
            found.append(path)

    return hook


def _without_stride(model: nn.Module, path: str) -> None:
    """Let a layer of stride 2 halve nothing; averages of 2x2 pixels are left out."""
    module = model.get_submodule(path)
    if isinstance(module, nn.AvgPool2d):
        model.set_submodule(path, nn.Identity())
    else:
        module.stride = (1, 1)  # type: ignore[assignment]


# ---- Stages -----------------------------------------------------------------------------


def _stage_of_parameters(model: Any, is_transformer: bool) -> dict[int, int]:
    """The number of each parameter's stage, by the parameter's id: timm's stem, then its stages or
    blocks. Of a transformer the first stage is the patch projection alone."""
    from timm.models import group_parameters

    groups = group_parameters(model, model.group_matcher(coarse=True))
    parameters = dict(model.named_parameters())
    found = {id(parameters[n]): number for number, names in groups.items() for n in names}
    if is_transformer:
        projection = {id(p) for p in model.patch_embed.parameters()}
        for name in groups[0]:
            if id(parameters[name]) not in projection:
                found[id(parameters[name])] = 1
    return found


def _stages(model: nn.Module, stage_of: dict[int, int]) -> list[list[str]]:
    """Names in `TimmLayers` of what each stage consists of, the first stage first."""
    numbers = {name: stage_of[id(p)] for name, p in model.named_parameters()}

    def parts(number: int) -> Iterator[str]:
        is_in: Callable[[str], bool] = lambda name: numbers[name] == number  # noqa: E731
        whole = list(_whole_modules(model, is_in))
        yield from whole
        for name in numbers:
            if is_in(name) and not any(name.startswith(f"{module}.") for module in whole):
                yield name

    return [[f"timm.{name}" for name in parts(n)] for n in sorted(set(numbers.values()))]


def _whole_modules(
    module: nn.Module, is_in: Callable[[str], bool], prefix: str = ""
) -> Iterator[str]:
    """The largest modules that have parameters, all of which are chosen by their names."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        names = [n for n, _ in child.named_parameters(f"{path}")]
        if names and all(map(is_in, names)):
            yield path
        else:
            yield from _whole_modules(child, is_in, f"{path}.")
