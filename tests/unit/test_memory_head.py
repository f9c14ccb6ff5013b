"""ClusterNCE's memory: formula by hand, updates, and its place in a step."""

import torch
from torch.nn import functional as F

from daal.nn.heads import ClusterMemory

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
