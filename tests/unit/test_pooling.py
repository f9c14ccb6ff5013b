"""Pooling and neck against their formulas."""

import pytest
import torch
from torch.nn import functional as F

from daal.nn.pooling import BatchNormNeck, GeneralizedMeanPooling


def features(dtype=torch.float32):
    """As after a ReLU: some zeros, and a channel that no pixel of an image has. (3, 5, 4, 2)"""
    generator = torch.Generator().manual_seed(0)
    features_BCHW = F.relu(torch.randn(3, 5, 4, 2, generator=generator)).to(dtype)
    features_BCHW[0, 0] = 0
    return features_BCHW


def generalised_mean(features_BCHW, p):
    clamped_BCHW = features_BCHW.double().clamp(min=1e-6)
    return (clamped_BCHW**p).mean((2, 3)) ** (1 / p)


@pytest.mark.parametrize("p", [3.0, 1.0, 4.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gem__the_formula_in_float32(p, dtype):
    pool = GeneralizedMeanPooling()
    assert pool.p.tolist() == [3.0]
    with torch.no_grad():
        pool.p.fill_(p)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        found_BC = pool(features(dtype))
    assert found_BC.dtype is torch.float32
    expected_BC = generalised_mean(features(dtype), p)
    torch.testing.assert_close(found_BC.double(), expected_BC, rtol=1e-5, atol=0)


def test_gem__p_learns_and_zeros_give_finite_gradients():
    pool, images_BCHW = GeneralizedMeanPooling(), features()
    images_BCHW[0] = 0
    images_BCHW.requires_grad_()
    pool(images_BCHW).sum().backward()
    step = 1e-4
    ends = [float(generalised_mean(images_BCHW.detach(), p).sum()) for p in (3 - step, 3 + step)]
    assert float(pool.p.grad) == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=1e-3)
    assert images_BCHW.grad.isfinite().all()
    assert images_BCHW.grad[1:].abs().sum() > 0


def test_neck__normalises_over_the_batch_without_a_shift():
    neck, features_BC = BatchNormNeck(5).train(), 3 + 2 * features().mean((2, 3))
    torch.nn.init.uniform_(neck.norm.weight)
    found_BC = neck(features_BC)
    mean_C, var_C = features_BC.mean(0), features_BC.var(0, correction=0)
    expected_BC = (features_BC - mean_C) / (var_C + 1e-5).sqrt() * neck.norm.weight
    torch.testing.assert_close(found_BC, expected_BC)
    found_BC.square().sum().backward()
    assert neck.norm.weight.grad is not None
    assert neck.norm.bias.grad is None and not neck.norm.bias.any()
