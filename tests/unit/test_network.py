"""The network of Fig. 2: branches, heads, weights, and what carries over."""

import pytest
import torch
from torch import nn

from daal.config import AttentionConfig, InputConfig, NetworkConfig
from daal.errors import CheckpointError
from daal.nn.backbone import build_backbone
from daal.nn.heads import IdentityHead
from daal.nn.network import DaalNetwork

SMALL = NetworkConfig(backbone="resnet18", weights="none")


def images(num=4):
    return torch.randn(num, 3, 64, 32, generator=torch.Generator().manual_seed(0))


OPTIONS = {"ibn": "a", "pooling": "gem", "neck": "bnneck", "domain_batch_norm": True}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("heads", [(7, 0, False), (7, 5, True)], ids=["pretrain", "adapt"])
def test_each_option_alone__changes_the_function_and_trains_all_it_adds(option, heads):
    torch.manual_seed(0)
    plain = DaalNetwork(SMALL, *heads).train()
    torch.manual_seed(0)
    network = DaalNetwork(SMALL.model_copy(update={option: OPTIONS[option]}), *heads).train()
    out = network(images(), 2)
    is_same = torch.equal(out.shared_BC, plain(images(), 2).shared_BC)
    assert is_same is (option == "domain_batch_norm" and not heads[1])
    logits = [out.source_logits_BS, out.target_logits_BK, out.domain_logits_B2]
    sum(tensor.square().sum() for tensor in logits if tensor is not None).backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert frozen == ({"neck.norm.bias"} if option == "neck" else set())


def test_neck__is_in_front_of_the_heads_and_of_matching():
    network = DaalNetwork(SMALL.model_copy(update={"neck": "bnneck"}), 7).eval()
    nn.init.normal_(network.neck.norm.running_mean)
    shared_BCHW, _, _ = network.feature_maps(images())
    expected_BC = network.neck(shared_BCHW.mean((2, 3)))
    assert (expected_BC - shared_BCHW.mean((2, 3))).abs().max() > 0.1
    out = network(images(), 4)
    torch.testing.assert_close(out.source_logits_BS, network.source_head(expected_BC))
    expected_BC = torch.nn.functional.normalize(expected_BC, dim=1)
    torch.testing.assert_close(network.extract(images()), expected_BC)


@pytest.mark.parametrize("heads", [(7, 0, False), (7, 5, True)], ids=["pretrain", "adapt"])
@pytest.mark.parametrize("mode", ["residual", "independent", "none"])
def test_every_trained_parameter_gets_a_gradient(mode, heads):
    config = SMALL.model_copy(update={"attention": AttentionConfig(mode=mode)})
    network = DaalNetwork(config, *heads)
    out = network(images(), 2)
    logits = [out.source_logits_BS, out.target_logits_BK, out.domain_logits_B2]
    shapes = [None if each is None else tuple(each.shape) for each in logits]
    assert shapes == ([(2, 7), None, None] if heads[1] == 0 else [(2, 7), (2, 5), (4, 2)])
    sum(each.sum() for each in logits if each is not None).backward()
    trained = [p for p in network.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)  # DDP waits for each


def test_extract__unit_length_and_the_backbones_own_direction_at_the_start():
    network = DaalNetwork(SMALL).eval()
    features = network.extract(images())
    assert torch.allclose(features.norm(dim=1), torch.ones(4), atol=1e-5)
    pooled = network.backbone(images()).mean((2, 3))  # A = 0.5 everywhere before training
    assert torch.allclose(features, torch.nn.functional.normalize(pooled, dim=1), atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "unit"])
def test_centroid_start__the_nearest_centroid_wins(kind):
    torch.manual_seed(0)
    head = IdentityHead(SMALL.model_copy(update={"identity_head": kind}), 16, 5)
    centroids = torch.nn.functional.normalize(torch.randn(5, 16), dim=1)
    head.start_from(centroids)
    assert head(3 * centroids).argmax(1).tolist() == [0, 1, 2, 3, 4]


def test_last_stride__doubles_the_feature_map():
    one = DaalNetwork(SMALL.model_copy(update={"last_stride": 1}))
    assert DaalNetwork(SMALL).backbone(images()).shape[-2:] == (2, 1)
    assert one.backbone(images()).shape[-2:] == (4, 2)


def test_frozen_stages__neither_train_nor_move_their_statistics():
    network = DaalNetwork(SMALL.model_copy(update={"frozen_stages": 3}), 7).train()
    assert not any(p.requires_grad for p in network.backbone.layer2.parameters())
    assert all(p.requires_grad for p in network.backbone.layer3.parameters())
    before = network.backbone.bn1.running_mean.clone()
    network(images(), 4)
    assert torch.equal(before, network.backbone.bn1.running_mean)


def test_load_matching__keeps_the_source_head_and_refuses_another_backbone():
    first = DaalNetwork(SMALL, num_source_ids=7)
    second = DaalNetwork(SMALL, 7, 9, domain_head=True)
    second.load_matching(first.state_dict())
    assert torch.equal(second.source_head.fc.weight, first.source_head.fc.weight)
    assert torch.equal(second.backbone.conv1.weight, first.backbone.conv1.weight)
    other = DaalNetwork(SMALL.model_copy(update={"backbone": "resnet34"}))
    with pytest.raises(CheckpointError, match="does not fit"):
        other.load_matching(first.state_dict())


@pytest.mark.parametrize(
    ("weights", "file"),
    [("imagenet", "resnet50-0676ba61.pth"), ("imagenet-v2", "resnet50-11ad3fa6.pth")],
)
def test_imagenet__is_one_file_for_good(weights, file, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub/checkpoints"
    cache.mkdir(parents=True)
    for name in ("resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth"):
        (cache / name).write_bytes(b"damaged")  # which of them is read shows in the error
    with pytest.raises(CheckpointError, match=file):
        build_backbone(NetworkConfig(weights=weights), InputConfig())
