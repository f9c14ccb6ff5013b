"""Eq. 1 and Eq. 2, and the module's shape of Fig. 3."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daal.nn.attention import DomainAdaptiveAttention, IndependentAttention, split_features


def test_split_features__hand_computed() -> None:
    features = torch.tensor([[[[2.0, -4.0]]]])
    attention = torch.tensor([[[[0.25, 0.5]]]])
    shared, specific = split_features(features, attention)
    assert shared.flatten().tolist() == [0.5, -2.0]  # Eq. 1: A x F
    assert specific.flatten().tolist() == [1.5, -2.0]  # Eq. 2: (1 - A) x F


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), height=st.integers(1, 9), width=st.integers(1, 5))
def test_module__parts_add_up_and_attention_is_open_interval(
    seed: int, height: int, width: int
) -> None:
    torch.manual_seed(seed)
    module = DomainAdaptiveAttention(32, zero_init=False)
    features = torch.randn(3, 32, height, width)
    shared, specific, attention = module(features)
    assert shared.shape == specific.shape == attention.shape == features.shape
    assert torch.allclose(shared + specific, features, atol=1e-6)
    assert (attention > 0).all()
    assert (attention < 1).all()


def test_zero_init__starts_at_one_half() -> None:
    features = torch.randn(4, 32, 8, 4)
    _, _, attention = DomainAdaptiveAttention(32)(features)
    assert torch.equal(attention, torch.full_like(attention, 0.5))


def test_relu_before_sigmoid__never_below_one_half() -> None:
    module = DomainAdaptiveAttention(32, relu_before_sigmoid=True, zero_init=False)
    _, _, attention = module(torch.randn(4, 32, 8, 4))
    assert attention.min() >= 0.5


@pytest.mark.parametrize("zero_init", [True, False])
def test_attention__can_learn_from_its_start(zero_init: bool) -> None:
    torch.manual_seed(0)
    module = DomainAdaptiveAttention(32, zero_init=zero_init)
    shared, _, _ = module(torch.randn(4, 32, 8, 4))
    shared.square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def test_options__pooled_channels_and_norm_between() -> None:
    features = torch.randn(4, 32, 8, 4)
    pooled = DomainAdaptiveAttention(32, pool_channels=True, zero_init=False)(features)[2]
    assert torch.allclose(pooled, pooled[:, :, :1, :1].expand_as(pooled))
    between = DomainAdaptiveAttention(32, norm_after_depthwise=True).attention.pointwise
    assert isinstance(between[0], torch.nn.BatchNorm2d)


def test_widths__are_the_papers() -> None:
    attention = DomainAdaptiveAttention(2048).attention
    depthwise, pointwise, channel = attention.depthwise, attention.pointwise, attention.channel
    assert depthwise.stride == (2, 2)
    assert depthwise.groups == 2048
    assert pointwise[0].out_channels == 1024  # c/2
    assert channel[0].out_channels == 128  # c/16
    assert channel[3].out_channels == 2048  # c


def test_independent__parts_need_not_add_up() -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 32, 8, 4)
    shared, specific, _ = IndependentAttention(32, zero_init=False)(features)
    assert not torch.allclose(shared + specific, features)
