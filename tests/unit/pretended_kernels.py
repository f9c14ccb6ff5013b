"""SyncBatchNorm's CUDA kernels by their formulas, for a machine without a GPU."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from daal.nn.batch_norm_kernels import layout_of

PER_CHANNEL = (0, 2, 3)


@contextmanager
def pretended_kernels() -> Iterator[None]:
    """Let `daal.nn.batch_norm_kernels` run on CPU tensors."""
    with ExitStack() as stack:
        for module in ("batch_norm", "domain_batch_norm"):
            stack.enter_context(patch(f"daal.nn.{module}.has_kernels", lambda images: True))
        for kernel in (stats, gather_stats_with_counts, elemt, backward_reduce, backward_elemt):
            stack.enter_context(patch(f"torch.batch_norm_{kernel.__name__}", kernel))
        yield


def _C11(values_C: Tensor) -> Tensor:
    return values_C[:, None, None]


def stats(images: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(images.float(), PER_CHANNEL, correction=0)
    return mean, (var + eps).rsqrt()


def gather_stats_with_counts(
    images: Tensor, means: Tensor, invstds: Tensor, running_mean: Tensor, running_var: Tensor,
    momentum: float, eps: float, counts: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    assert means.dtype == invstds.dtype == running_mean.dtype == counts.dtype == torch.float32
    assert means.shape == invstds.shape == (len(counts), images.shape[1])
    total, shares = counts.sum(), (counts / counts.sum())[:, None]
    mean = (shares * means).sum(0)
    var = (shares * (invstds**-2 - eps + (means - mean).square())).sum(0)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * total / (total - 1), momentum)
    return mean, (var + eps).rsqrt()


def elemt(
    images: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float,
    *, out: Tensor,
) -> Tensor:  # fmt: skip
    assert out.stride() == images.stride() and out.dtype == images.dtype
    return out.copy_((images.float() - _C11(mean)) * _C11(invstd * weight) + _C11(bias))


def backward_reduce(
    gradient: Tensor, images: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, *wanted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert gradient.is_contiguous(memory_format=layout_of(images)) and all(wanted)
    sum_dy = gradient.float().sum(PER_CHANNEL)
    sum_dy_xmu = (gradient.float() * (images.float() - _C11(mean))).sum(PER_CHANNEL)
    return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd, sum_dy.clone()


def backward_elemt(
    gradient: Tensor, images: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor,
    sum_dy: Tensor, sum_dy_xmu: Tensor, count: Tensor,
) -> Tensor:  # fmt: skip
    assert count.dtype == torch.int32
    total = count.sum()
    pull = _C11(sum_dy / total)
    pull = pull + (images.float() - _C11(mean)) * _C11(invstd.square() * sum_dy_xmu / total)
    return ((gradient.float() - pull) * _C11(invstd * weight)).to(images.dtype)
