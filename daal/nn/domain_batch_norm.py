"""BatchNorm with statistics, scales and shifts of each domain's own.

DSBN of Chang et al., "Domain-Specific Batch Normalization for Unsupervised Domain Adaptation",
CVPR 2019. Only a network that trains on both domains has such layers. Pretraining, which knows
the source alone, and extraction, which needs the target's alone, have plain BatchNorms, and
`checkpoint_name` says where a network finds its tensors in another's checkpoint:

    pretraining -> adapting: both domains start as copies of the plain layer;
    adapting -> extraction: the plain layer is the target's;
    pretraining -> extraction (direct transfer): the plain layer is the source's.

Shapes: B images, C channels, H x W pixels.
"""

from collections.abc import Container
from copy import deepcopy

import torch
from torch import Tensor, nn

from daal.nn.batch_norm import BatchNorm2d, GroupBatchNorm2d
from daal.nn.batch_norm_kernels import has_kernels, normalise_together


class DomainBatchNorm2d(nn.Module):
    """The batch's first `num_source` images through one BatchNorm, the rest through another.

    (B, C, H, W) of any float type and layout, which the result has too. Both start as copies of
    `norm`. The network sets `num_source` before each forward; a training batch has both domains.
    """

    num_source: int = 0

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.source = norm
        self.target = deepcopy(norm)

    def forward(self, input_BCHW: Tensor) -> Tensor:
        sizes = [self.num_source, len(input_BCHW) - self.num_source]
        source, target = self.source, self.target
        if source.training and isinstance(source, GroupBatchNorm2d) and has_kernels(input_BCHW):
            return normalise_together(input_BCHW, sizes, [source, target], source.process_group)
        # The gradient of a split is one operation; two slices have one each, and their sum.
        source_BCHW, target_BCHW = torch.split(input_BCHW, sizes)
        return torch.cat([source(source_BCHW), target(target_BCHW)])


def separate_domains(network: nn.Module) -> list[DomainBatchNorm2d]:
    """Give each domain its own copy of every BatchNorm that trains, in place; the new layers.

    Frozen layers keep their statistics and parameters, so that copies would stay equal.
    """
    separate = []
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if type(layer) is BatchNorm2d and layer.weight.requires_grad:
                separate.append(DomainBatchNorm2d(layer))
                parent.add_module(name, separate[-1])
    return separate


def checkpoint_name(name: str, checkpoint: Container[str]) -> str:
    """What a network's tensor `name` is called in a checkpoint with or without domains.

    The result isn't in `checkpoint` if that has no such tensor.
    """
    if name in checkpoint:
        return name
    layer, _, tensor = name.rpartition(".")
    parent, _, domain = layer.rpartition(".")
    return f"{parent}.{tensor}" if domain in ("source", "target") else f"{layer}.target.{tensor}"
