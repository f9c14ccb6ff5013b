"""IBN-a against its formula, and how a ResNet comes to it."""

import pytest
import torch
import torchvision
from torch import nn

from daal.config import NetworkConfig
from daal.errors import CheckpointError
from daal.nn.ibn import InstanceBatchNorm, add_instance_norm
from daal.nn.network import DaalNetwork

SMALL = NetworkConfig(backbone="resnet18", weights="none", ibn="a")


def batch_norm(channels):
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(channels)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5)
    return norm


def trained_resnet():
    torch.manual_seed(2)
    resnet = torchvision.models.resnet18()
    for module in resnet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.load_state_dict(batch_norm(module.num_features).state_dict())
    return resnet


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_half_has_its_own_statistics(training, layout):
    norm, plain = InstanceBatchNorm(7), batch_norm(7)
    norm.start_from(plain)
    norm.train(training)
    input_BCHW = (1 + 2 * torch.randn(3, 7, 4, 2)).contiguous(memory_format=layout)
    means = [input_BCHW[:, :3].mean((2, 3), keepdim=True)]
    variances = [input_BCHW[:, :3].var((2, 3), correction=0, keepdim=True)]
    if training:
        means.append(input_BCHW[:, 3:].mean((0, 2, 3), keepdim=True))
        variances.append(input_BCHW[:, 3:].var((0, 2, 3), correction=0, keepdim=True))
    else:
        means.append(plain.running_mean[3:, None, None])
        variances.append(plain.running_var[3:, None, None])
    mean_BC11, var_BC11 = (torch.cat([a, b.expand(3, 4, 1, 1)], 1) for a, b in (means, variances))
    expected_BCHW = (input_BCHW - mean_BC11) / (var_BC11 + 1e-5).sqrt()
    expected_BCHW = expected_BCHW * plain.weight[:, None, None] + plain.bias[:, None, None]
    found_BCHW = norm(input_BCHW)
    torch.testing.assert_close(found_BCHW, expected_BCHW)
    assert found_BCHW.is_contiguous(memory_format=layout)


def test_only_the_first_batch_norm_of_blocks_in_layer1_to_3():
    resnet = trained_resnet()
    add_instance_norm(resnet)
    found = {n for n, module in resnet.named_modules() if isinstance(module, InstanceBatchNorm)}
    assert found == {f"layer{i}.{block}.bn1" for i in (1, 2, 3) for block in (0, 1)}
    before = resnet.state_dict(keep_vars=True)
    add_instance_norm(resnet)
    assert all(tensor is before[name] for name, tensor in resnet.state_dict(keep_vars=True).items())


def test_plain_weights_are_split(tmp_path):
    plain = trained_resnet().state_dict()
    torch.save(plain, tmp_path / "plain.pth")
    network = DaalNetwork(SMALL.model_copy(update={"weights": str(tmp_path / "plain.pth")}))
    found = network.backbone.state_dict()
    for tensor in ("weight", "bias"):
        assert torch.equal(found[f"layer2.0.bn1.IN.{tensor}"], plain[f"layer2.0.bn1.{tensor}"][:64])
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(found[f"layer2.0.bn1.BN.{tensor}"], plain[f"layer2.0.bn1.{tensor}"][64:])
        assert torch.equal(found[f"layer4.0.bn1.{tensor}"], plain[f"layer4.0.bn1.{tensor}"])


def test_weights_of_ibn_net__are_used_as_they_are(tmp_path):
    resnet = trained_resnet()
    add_instance_norm(resnet)
    weights = {
        name: 2 + tensor
        for name, tensor in resnet.state_dict().items()
        if not name.startswith("fc.") and "num_batches" not in name  # old files have none
    }
    file = tmp_path / "resnet18_ibn_a.pth"
    torch.save(weights, file)
    config = SMALL.model_copy(update={"weights": str(file)})
    found = DaalNetwork(config).backbone.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    with pytest.raises(CheckpointError, match="set network.ibn=a"):
        DaalNetwork(config.model_copy(update={"ibn": "none"}))
