"""Published checkpoints of other projects, under the names that backbones read.

A checkpoint is recognised by its tensors' names, whatever stands before them: `module.`, `base.`,
`backbone.`, `module.encoder_q.`. What isn't the backbone's, as heads and queues, is left out.

    ResNets               torchvision and timm, MoCo and LUPerson, fast-reid, torchreid, SpCL and
                          Cluster Contrast, MMT, reid-strong-baseline
    OSNet                 torchreid, and the trackers that take its weights
    vision transformers   timm and DINO, TransReID, TransReID-SSL; Hugging Face's DINOv2 and ViT

Shapes: C channels.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from daal.errors import CheckpointError
from daal.nn.backbones.osnet import CHANNELS as OSNETS
from daal.nn.weights_file import as_float32, largest_state, read_any

Tensors = dict[str, Tensor]


class Published(NamedTuple):
    """What a checkpoint holds."""

    tensors: Tensors  # under the names of the backbone
    backbone: str  # `network.backbone`, or a pattern of names where several fit
    prefix: str  # what stood before the names
    left_out: list[str]  # names in the file
    ibn: bool = False  # needs network.ibn=a


def read_published(path: Path) -> Published:
    """The backbone's weights in a checkpoint, on the CPU in float32.

    Raises CheckpointError if it can't be read without unpickling, or is of no known kind.
    """
    where, found = largest_state(read_any(path))
    for anchor, convert in KINDS.items():
        prefixes = [name[: -len(anchor)] for name in found if f".{name}".endswith(f".{anchor}")]
        if prefixes:
            # Of a network and its running mean (MoCo), the one that was trained.
            prefix = next((p for p in prefixes if "encoder_q" in p), prefixes[0])
            return _under(prefix, found, convert, path)._replace(prefix=where + prefix)
    raise CheckpointError(
        f"{path} holds no network that is known; it has names like "
        f"{', '.join([*found][:3]) or '(none)'}: give a ResNet's or a vision transformer's."
    )


def _under(
    prefix: str, found: Tensors, convert: Callable[[Tensors, Path], Published], path: Path
) -> Published:
    inside = {n.removeprefix(prefix): t for n, t in found.items() if n.startswith(prefix)}
    try:
        published = convert(inside, path)
    except KeyError as error:
        raise CheckpointError(
            f"{path} lacks {prefix}{error.args[0]}; get the whole checkpoint."
        ) from error
    tensors = as_float32(published.tensors)
    unused = {f"{prefix}{name}" for name in published.left_out}
    return published._replace(
        tensors={name: tensor.contiguous() for name, tensor in tensors.items()},
        left_out=[n for n in found if not n.startswith(prefix) or n in unused],
    )


# ---- ResNets ----------------------------------------------------------------------------

RESNET_NAME = re.compile(
    r"(conv1|bn1|layer[1-4]\.\d+\.(conv[1-3]|bn[1-3]|bn1\.(IN|BN)|downsample\.[01]))"
    r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)
# By the numbers of blocks in layer1-4 and of convolutions in a block.
_RESNETS: dict[tuple[tuple[int, ...], int], str] = {
    ((2, 2, 2, 2), 2): "resnet18",
    ((3, 4, 6, 3), 2): "resnet34",
    ((3, 4, 6, 3), 3): "resnet50",
    ((3, 4, 23, 3), 3): "timm:resnet101",
    ((3, 8, 36, 3), 3): "timm:resnet152",
}


def _resnet(found: Tensors, path: Path) -> Published:
    tensors = {n: t for n, t in found.items() if RESNET_NAME.fullmatch(n)}
    blocks = tuple(
        len({n.split(".")[1] for n in tensors if n.startswith(f"layer{k}.")}) for k in (1, 2, 3, 4)
    )
    convolutions = sum(f"layer1.0.conv{k}.weight" in tensors for k in (1, 2, 3))
    backbone = _RESNETS.get((blocks, convolutions))
    if backbone is None:
        raise CheckpointError(
            f"{path} holds a ResNet with {blocks} blocks of {convolutions} convolutions, which is "
            "not known; give the checkpoint of another network."
        )
    if (channels := tensors["conv1.weight"].shape[1]) != 3:
        raise CheckpointError(
            f"{path} holds a {backbone} for images of {channels} channels; give one for RGB."
        )
    ibn = any(".IN." in name for name in tensors)
    if ibn and backbone.startswith("timm:"):
        raise CheckpointError(
            f"{path} holds a {backbone.removeprefix('timm:')} with IBN layers, which no backbone "
            "has; choose a ResNet-50 with IBN."
        )
    return Published(tensors, backbone, "", [n for n in found if n not in tensors], ibn)


def _osnet(found: Tensors, path: Path) -> Published:
    tensors = {n: t for n, t in found.items() if re.match(r"conv[1-5]\.", n)}
    width = tensors["conv1.conv.weight"].shape[0]
    names = [name for name, channels in OSNETS.items() if channels[0] == width]
    if not names:
        raise CheckpointError(
            f"{path} holds an OSNet of width {width}, which is not known; give the checkpoint of "
            "another network."
        )
    return Published(tensors, f"osnet:{names[0]}", "", [n for n in found if n not in tensors])


# ---- Vision transformers ----------------------------------------------------------------

_WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1536: "giant"}
_OF_TIMM = re.compile(
    r"(cls_token|pos_embed|reg_token|dist_token|mask_token|register_tokens"
    r"|(patch_embed|norm|norm_pre|fc_norm|blocks\.\d+)\..*)"
)


def _timm_transformer(found: Tensors, path: Path) -> Published:
    """timm's own names, which DINO's, TransReID's and many others' are."""
    projection = found["patch_embed.proj.weight"]
    tensors = {n: t for n, t in found.items() if _OF_TIMM.fullmatch(n)}
    return Published(
        tensors, _name_of(projection, tensors), "", [n for n in found if n not in tensors]
    )


def _name_of(projection: Tensor, tensors: Tensors) -> str:
    """The names of timm that may fit; there are several with the same shapes."""
    width, patch = projection.shape[0], projection.shape[2]
    kind = "*dinov2" if any(".ls1." in name for name in tensors) and patch == 14 else "*"
    return f"timm:vit_{_WIDTHS.get(width, '*')}_patch{patch}_{kind}"


# Hugging Face's names of DINOv2 and ViT, and timm's. Queries, keys and values are one layer there.
_OF_HUGGING_FACE = [
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)",
     r"blocks.\1.attn.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.(norm[12]|mlp\.fc[12])\.(weight|bias)", r"blocks.\1.\2.\3"),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
]  # fmt: skip


def _hugging_face(found: Tensors, path: Path) -> Published:
    tensors: Tensors = {}
    left_out = []
    for name, tensor in found.items():
        for pattern, replacement in _OF_HUGGING_FACE:
            if match := re.fullmatch(pattern, name):
                tensors[match.expand(replacement)] = tensor
                break
        else:
            left_out.append(name)
    for name in [n for n in tensors if ".attn.query." in n]:
        parts = [tensors.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        tensors[name.replace("query", "qkv")] = torch.cat(parts)
    return Published(tensors, _name_of(tensors["patch_embed.proj.weight"], tensors), "", left_out)


# By a tensor that each network of the kind has.
KINDS: dict[str, Callable[[Tensors, Path], Published]] = {
    "embeddings.patch_embeddings.projection.weight": _hugging_face,
    "patch_embed.proj.weight": _timm_transformer,
    "layer1.0.conv1.weight": _resnet,
    "conv2.0.conv2a.conv1.weight": _osnet,
}
