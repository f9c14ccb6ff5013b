"""Eq. 1 and Eq. 2, and the module's shape of Fig. 3."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from daal.config import AttentionConfig
from daal.nn.attention import AttentionMap, attention_module, split_features


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
    module = attention_module(32, AttentionConfig(zero_init=False))
    features = torch.randn(3, 32, height, width)
    shared, specific, attention = module(features)
    assert shared.shape == specific.shape == attention.shape == features.shape
    assert torch.allclose(shared + specific, features, atol=1e-6)
    assert (attention > 0).all() and (attention < 1).all()


def features_and_attention(**settings: Any) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    features = torch.randn(4, 32, 8, 4)
    return features, AttentionMap(32, AttentionConfig(**settings))(features)


def test_options() -> None:
    _, start = features_and_attention(zero_init=True)
    assert torch.equal(start, torch.full_like(start, 0.5))
    _, attention = features_and_attention(relu_before_sigmoid=True, zero_init=False)
    assert attention.min() >= 0.5
    _, attention = features_and_attention(pool_channels=True, zero_init=False)
    assert torch.allclose(attention, attention[:, :, :1, :1].expand_as(attention))
    between = AttentionMap(32, AttentionConfig(norm_after_depthwise=True)).pointwise[0]
    assert isinstance(between, torch.nn.BatchNorm2d)


@pytest.mark.parametrize("zero_init", [True, False])
def test_attention__can_learn_from_its_start(zero_init: bool) -> None:
    module = attention_module(32, AttentionConfig(zero_init=zero_init))
    shared, _, _ = module(torch.randn(4, 32, 8, 4))
    shared.square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def test_widths__are_the_papers() -> None:
    attention = AttentionMap(2048, AttentionConfig())
    depthwise, pointwise, channel = attention.depthwise, attention.pointwise, attention.channel
    assert (depthwise.stride, depthwise.groups) == ((2, 2), 2048)
    outputs = pointwise[0].out_channels, channel[0].out_channels, channel[3].out_channels
    assert outputs == (1024, 128, 2048)  # c/2, c/16, c


def test_independent__parts_need_not_add_up() -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 32, 8, 4)
    independent = attention_module(32, AttentionConfig(mode="independent", zero_init=False))
    shared, specific, _ = independent(features)
    assert not torch.allclose(shared + specific, features)
