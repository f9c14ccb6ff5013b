"""BatchNorm whose statistics are over several workers' images.

A worker's share of a batch may be too small for statistics of its own: results then change
with the number of workers. Workers are cut into groups, and each group normalises as one
worker with all its images would. Every worker of a group has the same number of images.

GPUs have kernels for this (`daal.nn.batch_norm_kernels`); CPUs and compilers get the formulas.

Shapes: B images of one worker, C channels, H x W pixels, G workers of a group.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from daal.nn.batch_norm_kernels import has_kernels, layout_of, normalise_together, per_channel

LEAST_IMAGES = 16  # of a batch, or of groups of workers, that BatchNorm's statistics are over


def group_size(images_per_worker: int, world_size: int, at_least: int = LEAST_IMAGES) -> int:
    """The smallest group of workers, a divisor of their number, that has `at_least` images.

    All workers, if even they have fewer.
    """
    sizes = (size for size in range(1, world_size + 1) if world_size % size == 0)
    return next((size for size in sizes if images_per_worker * size >= at_least), world_size)


def synchronise(network: nn.Module, process_group: dist.ProcessGroup) -> nn.Module:
    """Let the BatchNorm layers that train take their statistics over the process group.

    Replaces them in place; names in the state dict, parameters and buffers stay. Frozen layers,
    which keep their statistics, stay as they are.
    """
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if type(layer) is BatchNorm2d and layer.weight.requires_grad:
                setattr(parent, name, GroupBatchNorm2d(layer, process_group))
    return network


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, which also counts the batches it has seen: a launch a layer and step on a GPU.

    Nobody reads the count, unless statistics are a cumulative average. `num_batches_tracked` stays
    in the state dict, as it was loaded.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) of any float type and layout, which the result has too."""
        assert self.momentum is not None, "a cumulative average is not implemented"
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )


class GroupBatchNorm2d(BatchNorm2d):
    """`layer`, with statistics over a process group in training.

    Not torch's SyncBatchNorm, which refuses CPU tensors and makes the host wait for the GPU in
    every layer, to allow for unequal and empty shares.
    """

    def __init__(self, layer: nn.BatchNorm2d, process_group: dist.ProcessGroup) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum)
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked
        self.training = layer.training
        self.process_group = process_group

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) of any float type and layout, which the result has too."""
        if not self.training:
            return super().forward(input)
        if has_kernels(input):
            return normalise_together(input, [len(input)], [self], self.process_group)
        normalised_BCHW: Tensor
        normalised_BCHW, mean_C, var_C = _Normalise.apply(
            input, self.weight, self.bias, self.eps, self.process_group
        )
        count = dist.get_world_size(self.process_group) * per_channel(input)
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean_C, self.momentum)
            # Without bias, as BatchNorm's.
            self.running_var.lerp_(var_C * (count / (count - 1)), self.momentum)
        return normalised_BCHW


class _Normalise(torch.autograd.Function):
    """BatchNorm's formulas (Ioffe and Szegedy 2015), with sums over the group.

    Moments and sums in float32. They are equally weighted, as shares are of equal size.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input_BCHW: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        eps: float,
        process_group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor, Tensor]:
        var_C, mean_C = torch.var_mean(input_BCHW.float(), dim=(0, 2, 3), correction=0)
        moments_2C = torch.stack([mean_C, var_C])
        num_workers = dist.get_world_size(process_group)
        moments_G2C = [torch.empty_like(moments_2C) for _ in range(num_workers)]
        dist.all_gather(moments_G2C, moments_2C, process_group)
        means_GC, vars_GC = torch.stack(moments_G2C).unbind(1)
        mean_C = means_GC.mean(0)
        # Not by E[x^2] - E[x]^2, which cancels where the mean is large.
        var_C = (vars_GC + (means_GC - mean_C).square()).mean(0)
        ctx.save_for_backward(input_BCHW, weight_C, mean_C, var_C)
        ctx.eps, ctx.process_group = eps, process_group
        ctx.mark_non_differentiable(mean_C, var_C)
        normalised_BCHW = F.batch_norm(input_BCHW, mean_C, var_C, weight_C, bias_C, eps=eps)
        return normalised_BCHW, mean_C, var_C

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_BCHW: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        input_BCHW, weight_C, mean_C, var_C = ctx.saved_tensors
        grad_BCHW = grad_BCHW.contiguous(memory_format=layout_of(input_BCHW))
        # This worker's part of the parameters' gradients. With given statistics, as here, the
        # kernel doesn't look at those of a forward; CUDA's takes empty ones, but not None.
        of_forward = mean_C.new_empty(0)
        _, grad_weight_C, grad_bias_C = torch.ops.aten.native_batch_norm_backward(
            grad_BCHW, input_BCHW, weight_C, mean_C, var_C, of_forward, of_forward,
            False, ctx.eps, [False, True, True],
        )  # fmt: skip
        sums_2C = torch.stack([grad_weight_C, grad_bias_C])
        dist.all_reduce(sums_2C, group=ctx.process_group)
        group_weight_C, group_bias_C = sums_2C.unbind()
        count = dist.get_world_size(ctx.process_group) * per_channel(input_BCHW)
        invstd_C = torch.rsqrt(var_C + ctx.eps)
        slope_C = invstd_C * group_weight_C / count
        scale_C11, slope_C11, mean_C11, offset_C11 = (
            values_C[:, None, None]
            for values_C in (weight_C * invstd_C, slope_C, mean_C, group_bias_C / count)
        )
        pull_BCHW = (input_BCHW - mean_C11) * slope_C11 + offset_C11
        grad_input_BCHW = ((grad_BCHW - pull_BCHW) * scale_C11).to(input_BCHW.dtype)
        return grad_input_BCHW, grad_weight_C, grad_bias_C, None, None
