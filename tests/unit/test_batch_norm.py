"""Statistics over a group of workers equal those of one worker with all the group's images."""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from one_step import step
from pretended_kernels import pretended_kernels
from several_workers import found_by_workers
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from daal.config import NetworkConfig, OptimConfig
from daal.nn.batch_norm import BatchNorm2d, GroupBatchNorm2d, group_size, synchronise
from daal.nn.network import DaalNetwork
from daal.optimizer import make_optimizer
from daal.step import TrainBatch

NUM_WORKERS = 4
GROUPS = {"pairs": [[0, 1], [2, 3]], "all": [[0, 1, 2, 3]]}
KINDS = ["plain", "channels_last", "bf16", "far from 0"]
WAYS = {"formulas": nullcontext, "kernels": pretended_kernels}
OPTIM = OptimConfig(lr_backbone=0.05, lr_new=0.05)
AUTOCASTS = {
    "fp32 step": torch.autocast("cpu", enabled=False),
    "bf16 step": torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize(
    ("images", "workers", "at_least", "expected"),
    [(16, 4, 16, 1), (8, 4, 16, 2), (5, 4, 16, 4), (1, 4, 16, 4), (6, 6, 16, 3), (1, 1, 9, 1)],
)
def test_group_size(images, workers, at_least, expected):
    assert group_size(images, workers, at_least) == expected


def small_network(frozen_stages=0):
    torch.manual_seed(0)
    config = NetworkConfig(backbone="resnet18", weights="none", frozen_stages=frozen_stages)
    return DaalNetwork(config, 3, 4, True).train()


def test_synchronise__names_tensors_and_frozen_layers_stay():
    network = small_network(frozen_stages=2)
    before = network.state_dict(keep_vars=True)
    parameters = list(network.parameters())
    assert synchronise(network, None) is network
    after = network.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert all(new is old for new, old in zip(network.parameters(), parameters, strict=True))
    shared = {n for n, m in network.named_modules() if isinstance(m, GroupBatchNorm2d)}
    norms = {n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    frozen = ("backbone.bn1", "backbone.layer1.")
    assert norms - shared == {name for name in norms if name.startswith(frozen)} != set()
    assert len(shared) > 15
    assert not network.backbone.bn1.training and network.backbone.layer2[0].bn1.training


@pytest.mark.parametrize("training", [True, False])
def test_torchs_own_without_its_count(training):
    ours, theirs = layer(), nn.BatchNorm2d(5)
    theirs.load_state_dict(ours.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    found, expected = (
        results(norm.train(training), *share(0, "channels_last")) for norm in (ours, theirs)
    )
    assert found.pop("num_batches_tracked") == 0
    assert expected.pop("num_batches_tracked") == training
    for name, tensor in expected.items():
        assert found[name].equal(tensor), name


def test_compiled__one_graph_and_the_same_numbers(process_group):
    norm = GroupBatchNorm2d(layer(), dist.group.WORLD)
    torch._dynamo.reset()
    counters.clear()
    norm.compile(backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            found = results(norm, *share(0, "channels_last"))
            norm.zero_grad()
    assert counters["stats"]["unique_graphs"] == 1
    expected = results(layer(), *share(0, "channels_last"))
    for name in ("out", "input gradient"):
        torch.testing.assert_close(found[name], expected[name])


def share(rank, kind):
    """A worker's images, and the gradient of its loss in the result: (3, 5, 4, 2) each."""
    generator = torch.Generator().manual_seed(rank)
    images_BCHW, gradient_BCHW = torch.randn(2, 3, 5, 4, 2, generator=generator)
    images_BCHW += rank  # so that groups differ
    if kind == "far from 0":
        images_BCHW += 1000
    if kind == "channels_last":
        images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
    return (x.bfloat16() if kind == "bf16" else x for x in (images_BCHW, gradient_BCHW))


def layer():
    torch.manual_seed(1)
    norm = BatchNorm2d(5)
    nn.init.uniform_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def results(norm, images_BCHW, gradient_BCHW):
    images_BCHW = images_BCHW.detach().requires_grad_()
    out_BCHW = norm(images_BCHW)
    assert out_BCHW.dtype == images_BCHW.dtype and out_BCHW.stride() == images_BCHW.stride()
    out_BCHW.backward(gradient_BCHW)
    assert images_BCHW.grad is not None and images_BCHW.grad.dtype == images_BCHW.dtype
    found = {"out": out_BCHW.detach(), "input gradient": images_BCHW.grad}
    gradients = {f"{name} gradient": p.grad for name, p in norm.named_parameters()}
    return {**found, **gradients, **dict(norm.named_buffers())}


def worker(rank):
    found = {}
    for name, members in GROUPS.items():
        group, _ = dist.new_subgroups_by_enumeration(members)
        for kind in KINDS:
            for way, with_them in WAYS.items():
                with with_them():
                    norm = GroupBatchNorm2d(layer(), group)
                    found[name, kind, way] = results(norm, *share(rank, kind))
    for name, autocast in AUTOCASTS.items():  # the last group is all workers
        model = DistributedDataParallel(synchronise(small_network(), group))
        found[name] = trained(model, batch(rank), autocast)
    return found


def batch(rank):
    """A worker's two source and two target images, or all of them."""
    generator = torch.Generator().manual_seed(0)
    num = 2 * NUM_WORKERS
    source, target = torch.randn(2, num, 3, 64, 64, generator=generator)
    labels = torch.randint(3, (num,), generator=generator)
    weights = torch.softmax(torch.randn(num, 4, generator=generator), 1)
    mine = slice(None) if rank is None else slice(rank, None, NUM_WORKERS)
    return TrainBatch(torch.cat([source[mine], target[mine]]), labels[mine], weights[mine])


def trained(model, batch, autocast):
    network, diverged = getattr(model, "module", model), torch.zeros(())
    step(model, batch, make_optimizer(network, OPTIM), diverged=diverged, autocast=autocast)
    assert float(diverged) == 0
    return network.state_dict()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each worker found."""
    return found_by_workers(worker, NUM_WORKERS, tmp_path_factory.mktemp("workers"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", GROUPS)
def test_a_group_equals_one_worker_with_all_its_images(found, groups, kind, way):
    for members in GROUPS[groups]:
        images_BCHW, gradient_BCHW = (
            torch.cat(parts).double()
            for parts in zip(*(share(rank, kind) for rank in members), strict=True)
        )
        expected = results(layer().double(), images_BCHW, gradient_BCHW)
        ours = [found[rank][groups, kind, way] for rank in members]
        close = {"rtol": 2e-2, "atol": 2e-2} if kind == "bf16" else {"rtol": 1e-5, "atol": 1e-5}
        if kind == "far from 0":
            close["atol"] = 1e-3  # 1000 has a spacing of 6e-5 in float32
        for name, whole in expected.items():
            if name in ("out", "input gradient"):
                mine = torch.cat([part[name] for part in ours])
            elif "gradient" in name:  # the workers' sum, which DDP makes
                mine = torch.stack([part[name] for part in ours]).sum(0)
            else:
                mine = ours[0][name]
                assert all(torch.equal(part[name], mine) for part in ours), name
            torch.testing.assert_close(mine.to(whole), whole, **close)


@pytest.mark.parametrize(("name", "tolerance"), [("fp32 step", 1e-4), ("bf16 step", 3e-2)])
def test_step_of_four_workers_equals_that_of_one(found, name, tolerance):
    """The whole network under DDP, statistics over all workers."""
    expected = trained(small_network(), batch(None), AUTOCASTS[name])
    for key, tensor in expected.items():
        for rank in range(NUM_WORKERS):
            ours = found[rank][name][key]
            torch.testing.assert_close(ours, tensor, rtol=tolerance, atol=tolerance)
