"""Classifiers of the shared feature: the paper's, and one whose class weights are a memory.

Shapes: B images, T target images of a batch, C channels, K classes or clusters.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daal.config import NetworkConfig

HEAD_SCALE = 20.0  # one over the temperature, of a memory and of identity_head=unit
MEMORY_MOMENTUM = 0.1  # share of the old memory in each update, as in Cluster Contrast


class IdentityHead(nn.Module):
    """FC from the shared feature to identities (Eq. 3 and Eq. 5).

    identity_head "linear" is the paper's FC. "unit" normalises the feature first and multiplies
    it by HEAD_SCALE; its logits are float32, also under autocast: the scale would make much of
    bf16's rounding.
    """

    def __init__(self, config: NetworkConfig, num_features: int, num_ids: int) -> None:
        super().__init__()
        self.unit = config.identity_head == "unit"
        self.scale = HEAD_SCALE
        self.fc = nn.Linear(num_features, num_ids, bias=not self.unit)
        if self.unit:
            nn.init.normal_(self.fc.weight, std=num_features**-0.5)  # rows of length about 1
        else:
            nn.init.normal_(self.fc.weight, std=0.001)
            nn.init.zeros_(self.fc.bias)

    @torch.no_grad()
    def start_from(self, centroids_KC: Tensor) -> None:
        """Use cluster centroids as class weights, so that the first logits already rank clusters.

        A linear head gets the weights of unit length, for features of any length.
        """
        self.fc.weight.copy_(F.normalize(centroids_KC.float(), dim=1))

    def forward(self, features_BC: Tensor) -> Tensor:
        if not self.unit:
            logits: Tensor = self.fc(features_BC)
            return logits
        with torch.autocast(features_BC.device.type, enabled=False):
            return F.linear(self.scale * F.normalize(features_BC.float(), dim=1), self.fc.weight)


class ClusterMemory(nn.Module):
    """Similarity of a feature to each cluster's memory, times `scale`: (T, C) -> (T, K), float32.

    ClusterNCE of Dai et al., "Cluster Contrast for Unsupervised Person Re-Identification", ACCV
    2022 (first as arXiv 2103.11568), sec. 3.2. Its loss is the cross entropy of these logits, so
    that Eq. 3 and Eq. 5 of our paper apply to it as they do to a fully connected head.

    `scale` is one over the temperature. The memory is no parameter: no gradient changes it, but
    after each step the features of the batch do.
    """

    memory_KC: Tensor

    def __init__(
        self,
        num_features: int,
        num_clusters: int,
        scale: float = HEAD_SCALE,
        momentum: float = MEMORY_MOMENTUM,
    ) -> None:
        super().__init__()
        self.scale, self.momentum = scale, momentum
        # A memory that nothing filled: clusters in directions of their own.
        random_KC = F.normalize(torch.randn(num_clusters, num_features), dim=1)
        self.register_buffer("memory_KC", random_KC)

    @torch.no_grad()
    def start_from(self, centroids_KC: Tensor) -> None:
        """Fill the memory with the directions of the clusters' centroids."""
        self.memory_KC.copy_(F.normalize(centroids_KC.float(), dim=1))

    def forward(self, features_TC: Tensor) -> Tensor:
        with torch.autocast(features_TC.device.type, enabled=False):  # or the product is of bf16
            return self.scale * F.linear(F.normalize(features_TC.float(), dim=1), self.memory_KC)

    @torch.no_grad()
    def update(self, features_TC: Tensor, labels_T: Tensor, unless: Tensor) -> None:
        """Move the memory of each cluster in the batch towards its images' mean, by 1 - momentum.

        c <- c m + (1 - m) mean of f, made a unit vector again (Eq. 3 of Cluster Contrast takes the
        images one after the other; the mean doesn't depend on their order). Features are of the
        whole batch, of any length. Nothing changes where the scalar `unless` isn't 0.
        """
        features_TC = F.normalize(features_TC.float(), dim=1)
        sums_KC = torch.zeros_like(self.memory_KC).index_add_(0, labels_T, features_TC)
        # Not by bincount, for which the host waits on a GPU.
        ones_T1 = torch.ones_like(features_TC[:, :1])
        counts_K1 = torch.zeros_like(sums_KC[:, :1]).index_add_(0, labels_T, ones_T1)
        means_KC = sums_KC / counts_K1.clamp(min=1)
        moved_KC = self.momentum * self.memory_KC + (1 - self.momentum) * means_KC
        moves_K1 = (counts_K1 > 0) & (unless == 0)
        self.memory_KC.copy_(torch.where(moves_K1, F.normalize(moved_KC, dim=1), self.memory_KC))
