"""IBN-a: half the channels of a BatchNorm normalised image by image.

Pan et al., "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net", ECCV
2018, Fig. 3(a). Instance normalisation takes out what is common to an image's pixels, such as
a camera's colours; BatchNorm's half keeps what tells images apart.

Shapes: B images, C channels of the layer, H x W pixels.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from daal.nn.batch_norm import BatchNorm2d
from daal.nn.batch_norm_kernels import layout_of


class InstanceBatchNorm(nn.Module):
    """InstanceNorm on the first half of the channels, BatchNorm on the rest: (B, C, H, W) -> same.

    The tensors are named as in github.com/XingangPan/IBN-Net (IN.weight, BN.weight, ...).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.IN = nn.InstanceNorm2d(half, affine=True)
        self.BN = BatchNorm2d(channels - half)

    @torch.no_grad()
    def start_from(self, norm: nn.BatchNorm2d) -> None:
        """Take over a BatchNorm's scales and shifts, and for the BatchNorm half its statistics.

        A start, not an equal: the first half's scales were learned for statistics of the whole
        data set, and meet each image's own here.
        """
        half = self.IN.num_features
        self.IN.weight.copy_(norm.weight[:half])
        self.IN.bias.copy_(norm.bias[:half])
        own = self.BN.state_dict()
        for name, tensor in norm.state_dict().items():
            own[name].copy_(tensor[half:] if tensor.ndim else tensor)

    def forward(self, input_BCHW: Tensor) -> Tensor:
        # Halves of the channels have gaps in memory, and InstanceNorm forgets channels_last: from
        # here on every layer would work in, or copy from, the other layout.
        layout = layout_of(input_BCHW)
        first_BCHW, rest_BCHW = input_BCHW.tensor_split([self.IN.num_features], 1)
        by_image_BCHW = self.IN(first_BCHW.contiguous()).contiguous(memory_format=layout)
        by_batch_BCHW = self.BN(rest_BCHW.contiguous(memory_format=layout))
        return torch.cat([by_image_BCHW, by_batch_BCHW], 1)


def add_instance_norm(resnet: nn.Module) -> None:
    """Make the first BatchNorm of each block in layer1-3 an InstanceBatchNorm, in place.

    Weights are taken over by `InstanceBatchNorm.start_from`: torchvision has none with IBN. Layers
    that are one already stay as they are.
    """
    for name in ("layer1", "layer2", "layer3"):
        for block in resnet.get_submodule(name).children():
            norm = block.get_submodule("bn1")
            if isinstance(norm, nn.BatchNorm2d):
                both = InstanceBatchNorm(norm.num_features)
                both.start_from(norm)
                block.add_module("bn1", both)


def has_instance_norm(names: Iterable[str]) -> bool:
    """Whether these are the names of a ResNet-IBN's tensors."""
    return any(".IN." in name for name in names)
