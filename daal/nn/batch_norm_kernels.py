"""Shared BatchNorm on GPUs: seven launches a layer and step, two of them collectives.

The kernels are those that torch made for its SyncBatchNorm. Each does one pass over the images, or
over the workers' moments; between them nothing is computed. Layers that normalise parts of one
batch, such as those of two domains, exchange their moments together.

Shapes: B images of one worker, C channels, H x W pixels, G workers of a group, P parts of a batch.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def has_kernels(images_BCHW: Tensor) -> bool:
    """Whether the kernels can be used: CPUs have none, and a compiler fuses the formulas."""
    return images_BCHW.is_cuda and not torch.compiler.is_compiling()


def normalise_together(
    images_BCHW: Tensor,
    sizes_P: Sequence[int],
    norms_P: Sequence[nn.BatchNorm2d],
    process_group: dist.ProcessGroup,
) -> Tensor:
    """Each part of the batch by a layer of its own, with statistics over the group's workers.

    `sizes_P` are the parts' numbers of images, none of them 0 and equal on every worker. The layers
    are in training, and their running statistics are updated. Type and layout are the images'.
    """
    affine_2P = [tensor for norm in norms_P for tensor in (norm.weight, norm.bias)]
    normalised_BCHW: Tensor = _Normalise.apply(
        images_BCHW, list(sizes_P), norms_P, process_group, *affine_2P
    )
    return normalised_BCHW


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images_BCHW: Tensor,
        sizes_P: list[int],
        norms_P: Sequence[nn.BatchNorm2d],
        process_group: dist.ProcessGroup,
        *affine_2P: Tensor,
    ) -> Tensor:
        parts_P = torch.split(images_BCHW, sizes_P)
        moments: list[Tensor] = []  # mean and 1 / deviation (C,) of each part
        for part_BCHW, norm in zip(parts_P, norms_P, strict=True):
            moments += torch.batch_norm_stats(part_BCHW, norm.eps)
        num_workers = dist.get_world_size(process_group)
        gathered = [moment_C.new_empty(num_workers * len(moment_C)) for moment_C in moments]
        # One message for all of them; they needn't be copied into one tensor first.
        process_group.allgather_into_tensor_coalesced(gathered, moments).wait()
        moments_GC = [moment.view(num_workers, -1) for moment in gathered]
        normalised_BCHW = torch.empty_like(images_BCHW)
        outs_P = torch.split(normalised_BCHW, sizes_P)
        statistics: list[Tensor] = []
        for part_BCHW, norm, means_GC, invstds_GC, out_BCHW in zip(
            parts_P, norms_P, moments_GC[::2], moments_GC[1::2], outs_P, strict=True
        ):
            counts_G, _ = _counts(per_channel(part_BCHW), num_workers, part_BCHW.device)
            mean_C, invstd_C = torch.batch_norm_gather_stats_with_counts(
                part_BCHW, means_GC, invstds_GC, norm.running_mean, norm.running_var,
                norm.momentum or 0.0, norm.eps, counts_G,
            )  # fmt: skip
            torch.batch_norm_elemt(
                part_BCHW, norm.weight, norm.bias, mean_C, invstd_C, norm.eps, out=out_BCHW
            )
            statistics += (mean_C, invstd_C)
        ctx.save_for_backward(images_BCHW, *affine_2P[::2], *statistics)
        ctx.sizes_P, ctx.process_group = sizes_P, process_group
        return normalised_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        sizes_P, process_group = ctx.sizes_P, ctx.process_group
        images_BCHW, *others = ctx.saved_tensors
        weights_P, statistics = others[: len(sizes_P)], others[len(sizes_P) :]
        grad_BCHW = grad_BCHW.contiguous(memory_format=layout_of(images_BCHW))
        grads_P, images_P = torch.split(grad_BCHW, sizes_P), torch.split(images_BCHW, sizes_P)
        parts = list(
            zip(grads_P, images_P, statistics[::2], statistics[1::2], weights_P, strict=True)
        )
        # The sums of the group that the images' gradients need, and this worker's part of the
        # parameters' gradients: DDP adds those.
        sums, affine_grads = [], []
        for part in parts:
            *both_sums, grad_weight_C, grad_bias_C = torch.batch_norm_backward_reduce(
                *part, True, True, True
            )
            sums += both_sums
            affine_grads += [grad_weight_C, grad_bias_C]
        process_group.allreduce_coalesced(sums).wait()
        num_workers = dist.get_world_size(process_group)
        grads = []
        for part, sum_C, product_C in zip(parts, sums[::2], sums[1::2], strict=True):
            _, counts_G = _counts(per_channel(part[1]), num_workers, sum_C.device)
            grads.append(torch.batch_norm_backward_elemt(*part, sum_C, product_C, counts_G))
        images_grad_BCHW = grads[0] if len(grads) == 1 else torch.cat(grads)
        return images_grad_BCHW, None, None, None, *affine_grads


@lru_cache
def _counts(count: int, num_workers: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many values a channel has on each worker (G,): float32, and the same in int32."""
    counts_G = torch.full((num_workers,), count, dtype=torch.int32, device=device)
    return counts_G.float(), counts_G


def per_channel(images_BCHW: Tensor) -> int:
    """How many values each channel has."""
    return images_BCHW.numel() // images_BCHW.shape[1]


def layout_of(images_BCHW: Tensor) -> torch.memory_format:
    """channels_last, or the contiguous format of any others."""
    is_last = images_BCHW.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format
