"""Each domain's BatchNorm sees that domain alone, in every stage and among several workers."""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from one_step import step
from pretended_kernels import pretended_kernels
from several_workers import found_by_workers
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from daal.config import NetworkConfig, OptimConfig
from daal.nn.batch_norm import BatchNorm2d, synchronise
from daal.nn.domain_batch_norm import DomainBatchNorm2d, checkpoint_name
from daal.nn.network import DaalNetwork
from daal.optimizer import make_optimizer
from daal.step import TrainBatch

NUM_WORKERS = 2
PLAIN = NetworkConfig(backbone="resnet18", weights="none")
DOMAINS = PLAIN.model_copy(update={"domain_batch_norm": True})
ALL = DOMAINS.model_copy(update={"ibn": "a", "pooling": "gem", "neck": "bnneck"})
OPTIM = OptimConfig(lr_backbone=0.02, lr_new=0.02)


def images(num, *shape):
    return torch.randn(num, *shape, generator=torch.Generator().manual_seed(0))


def layer(num_source):
    torch.manual_seed(1)
    norm = BatchNorm2d(5)
    nn.init.uniform_(norm.weight)
    nn.init.normal_(norm.bias)
    both = DomainBatchNorm2d(norm)
    both.num_source = num_source
    return both


def adapting(config=DOMAINS):
    torch.manual_seed(0)
    return DaalNetwork(config, 3, 4, domain_head=True).train()


def train(model, batch, bf16=False):
    optimizer = make_optimizer(getattr(model, "module", model), OPTIM)
    step(model, batch, optimizer, autocast=torch.autocast("cpu", torch.bfloat16, enabled=bf16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_a_batch_norm_for_each_domain(layout, dtype):
    both = layer(num_source=3)
    nn.init.normal_(both.target.weight)
    alone = {name: BatchNorm2d(5) for name in ("source", "target")}
    for name, norm in alone.items():
        norm.load_state_dict(getattr(both, name).state_dict())
    input_BCHW = images(5, 5, 4, 2).to(dtype).contiguous(memory_format=layout).requires_grad_()
    gradient_BCHW = torch.randn(5, 5, 4, 2).to(dtype)
    for mode in (True, False):
        found_BCHW = both.train(mode)(input_BCHW)
        expected_BCHW = torch.cat([
            norm.train(mode)(part)
            for norm, part in zip(alone.values(), input_BCHW.split([3, 2]), strict=True)
        ])  # fmt: skip
        assert torch.equal(found_BCHW, expected_BCHW)
        assert found_BCHW.dtype is dtype and found_BCHW.is_contiguous(memory_format=layout)
        gradients = [
            torch.autograd.grad(out, [input_BCHW, *module.parameters()], gradient_BCHW)
            for out, module in ((found_BCHW, both), (expected_BCHW, nn.ModuleDict(alone)))
        ]
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))
    for name, norm in alone.items():
        assert torch.equal(getattr(both, name).running_mean, norm.running_mean)
        assert torch.equal(getattr(both, name).running_var, norm.running_var)
    assert not torch.equal(both.source.running_mean, both.target.running_mean)


@pytest.mark.parametrize("config", [DOMAINS, ALL], ids=["alone", "with ibn and neck"])
def test_every_layer_that_trains_is_separate_and_no_frozen_one(config):
    network = adapting(config.model_copy(update={"frozen_stages": 2}))
    inside = {
        f"{name}.{domain}"
        for name, module in network.named_modules()
        if isinstance(module, DomainBatchNorm2d)
        for domain in ("source", "target")
    }
    plain = {n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)} - inside
    assert plain and all(n.startswith(("backbone.bn1", "backbone.layer1.")) for n in plain)
    parents = {name.rpartition(".")[0].split(".")[0] for name in inside}
    assert parents == {"backbone", "attention"} | ({"neck"} if config is ALL else set())
    assert not network.backbone.bn1.training
    assert network.backbone.layer2[0].bn2.source.training


def test_pretraining_and_extraction_are_plain():
    for heads in ((3, 0), (0, 0)):
        names = list(DaalNetwork(DOMAINS, *heads).state_dict())
        assert names == list(DaalNetwork(PLAIN, *heads).state_dict())


def test_stages__copies_of_the_source_then_the_targets_own():
    torch.manual_seed(0)
    pretrained = DaalNetwork(ALL, 3).train()
    batch = TrainBatch(images(8, 3, 64, 32), torch.arange(8) % 3, torch.softmax(images(4, 4), 1))
    train(pretrained, TrainBatch(batch.images_BCHW, batch.source_labels_S, None))
    network = adapting(ALL)
    network.load_matching(pretrained.state_dict())
    after, before = network.state_dict(), pretrained.state_dict()
    taken = [name for name in after if not name.startswith(("target_head.", "domain_head."))]
    for name in taken:
        assert torch.equal(after[name], before[checkpoint_name(name, before)]), name
    assert "backbone.layer1.0.bn1.BN.target.running_mean" in taken
    assert "neck.norm.source.weight" in taken

    train(
        network, TrainBatch(batch.images_BCHW, batch.source_labels_S[:4], batch.target_weights_TK)
    )
    again = adapting(ALL)
    again.load_matching(network.state_dict())  # the next iteration
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in network.state_dict().items())
    extraction = DaalNetwork(ALL).eval()
    extraction.load_matching(network.state_dict())
    found, trained = extraction.state_dict(), network.state_dict()
    assert torch.equal(found["backbone.bn1.weight"], trained["backbone.bn1.target.weight"])
    for name in ("running_mean", "weight"):
        source, target = (trained[f"neck.norm.{domain}.{name}"] for domain in ("source", "target"))
        assert torch.equal(found[f"neck.norm.{name}"], target) and not torch.equal(source, target)
    features_BC = network.eval().extract(batch.images_BCHW)
    assert torch.equal(extraction.extract(batch.images_BCHW), features_BC)


def batch(rank):
    """A worker's share of four source and four target images, or all of them."""
    mine = slice(None) if rank is None else slice(rank, None, NUM_WORKERS)
    source, target = images(8, 3, 64, 64).split(4)
    return TrainBatch(
        torch.cat([source[mine], 2 * target[mine] + 1]),
        (torch.arange(4) % 3)[mine],
        torch.softmax(images(4, 4), 1)[mine],
    )


def worker(rank):
    found = {}
    for name in ("fp32", "bf16", "kernels"):
        network = adapting(ALL).to(memory_format=torch.channels_last)
        model = DistributedDataParallel(synchronise(network, dist.group.WORLD))
        with pretended_kernels() if name == "kernels" else nullcontext():
            train(model, batch(rank), bf16=name == "bf16")
        found[name] = network.state_dict()
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each worker found."""
    return found_by_workers(worker, NUM_WORKERS, tmp_path_factory.mktemp("workers"))


@pytest.mark.parametrize(("name", "tolerance"), [("fp32", 1e-3), ("bf16", 3e-2), ("kernels", 1e-3)])
def test_step_of_two_workers_equals_that_of_one(found, name, tolerance):
    """Everything at once under DDP: each domain's statistics over both workers."""
    network = adapting(ALL)
    train(network, batch(None), bf16=name == "bf16")
    for key, tensor in network.state_dict().items():
        for ours in found:
            torch.testing.assert_close(ours[name][key], tensor, rtol=tolerance, atol=tolerance)
