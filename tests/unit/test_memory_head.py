"""ClusterNCE's memory: formula by hand, updates, and its place in a step."""

import torch
from torch.nn import functional as F

from daal.config import LossConfig, NetworkConfig, OptimConfig
from daal.nn.heads import ClusterMemory
from daal.nn.network import DaalNetwork
from daal.optimizer import make_optimizer
from daal.step import TrainBatch, train_step

CONTINUE, STOP = torch.zeros(()), torch.ones(())


def memory(momentum=0.25):
    made = ClusterMemory(num_features=2, num_clusters=3, scale=20, momentum=momentum)
    made.start_from(torch.tensor([[2.0, 0.0], [0.0, 0.5], [-3.0, 0.0]]))
    return made


def test_logits_and_update_by_hand():
    head = memory(momentum=0.25)
    logits = head(torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(logits, 20 * torch.tensor([[0.6, 0.8, -0.6]]))
    # Two images of cluster 0 with a mean of (0.6, 0.0), one of cluster 2, none of cluster 1.
    features = torch.tensor([[3.0, 4.0], [6.0, -8.0], [0.0, 7.0]])
    head.update(features, torch.tensor([0, 0, 2]), CONTINUE)
    moved = torch.tensor([[0.25 + 0.75 * 0.6, 0.0], [0.0, 1.0], [-0.25, 0.75]])
    torch.testing.assert_close(head.memory_KC, F.normalize(moved, dim=1))


def test_nothing_moves_when_training_has_diverged():
    head = memory()
    before = head.memory_KC.clone()
    head.update(torch.full((2, 2), torch.nan), torch.tensor([0, 1]), STOP)
    assert torch.equal(head.memory_KC, before)


def test_a_step_trains_the_backbone_and_moves_the_memory():
    torch.manual_seed(0)
    config = NetworkConfig(backbone="resnet18", weights="none", target_head="memory")
    network = DaalNetwork(config, num_source_ids=3, num_clusters=4, domain_head=True).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = make_optimizer(network, OptimConfig(lr_backbone=0.01, lr_new=0.01))
    labels = torch.tensor([0, 0, 3, 3])
    batch = TrainBatch(
        torch.randn(8, 3, 64, 32), torch.tensor([0, 1, 2, 0]), F.one_hot(labels, 4).float(), labels
    )
    off = torch.autocast("cpu", enabled=False)
    train_step(network, [batch], optimizer, LossConfig(), CONTINUE.clone(), lambda _: None, off)
    after = network.state_dict()
    moved = (after["target_head.memory_KC"] != before["target_head.memory_KC"]).any(1)
    assert moved.tolist() == [True, False, False, True]
    assert not torch.equal(after["backbone.conv1.weight"], before["backbone.conv1.weight"])
