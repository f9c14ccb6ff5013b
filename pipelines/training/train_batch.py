"""The input of a training step: gathered on the host, finished on the device.

Shapes: B images of a part of a worker's batch, S of them from the source, T from the target; C
channels of a feature, K clusters, H x W pixels, X columns of `daal.data.augment.draw_table`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.soft_labels import hard_label_weights, lsr_weights, soft_label_weights
from daal.config import Config
from daal.data.augment import IMAGENET, ChannelStatistics, augment, draw_table, sample_seeds
from daal.step import TrainBatch
from pipelines.images.prefetch import pinned
from pipelines.images.stream import FedBatch

# Eq. 4 has no limit where a sample is its cluster's center (near-copies).
MIN_SQ_DISTANCE = 1e-3


def weighs_by_features(config: Config) -> bool:
    """Whether targets are Eq. 4's, which need the features of a batch."""
    return config.soft_labels.target_labels in ("soft", "soft-literal")


@dataclass(frozen=True)
class Labels:
    """Labels of every row, by domain.

    source_N: class index of each source row. features_NC, pseudo_labels_N, centroids_KC: the
    target's features and clusters as they were before this fit (line 5 of Algorithm 1), of the
    whole body. Features may be of `feature_rows` (ascending) alone.
    """

    source_N: NDArray[np.int64]
    num_source_ids: int
    pseudo_labels_N: NDArray[np.int64] | None = None
    features_NC: NDArray[np.float32] | None = None
    centroids_KC: NDArray[np.float32] | None = None
    stripe_labels_NS: NDArray[np.int64] | None = None  # clusters of each stripe (SSG)
    feature_rows: NDArray[np.int64] | None = None

    @property
    def num_clusters(self) -> int:
        return 0 if self.centroids_KC is None else len(self.centroids_KC)


class HostBatch(NamedTuple):
    """One part of a batch, source rows first, in shapes that are fixed for a whole fit.

    None: not used (pretraining has no clusters, and only Eq. 4 uses features). Host memory is
    pinned where a GPU trains, so that copies don't wait for its queue; pixels that are kept on the
    device are there already.
    """

    images_BHWC: Tensor  # uint8
    table_BX: Tensor  # int16: `daal.data.augment.draw_table`
    source_labels_S: Tensor  # int64: class indices
    target_labels_T: Tensor | None = None  # int64: clusters
    features_TC: Tensor | None = None  # float32
    stripe_labels_TS: Tensor | None = None  # int64: clusters of stripes (SSG)

    def to(self, device: torch.device) -> "HostBatch":
        """The same on the device; the host doesn't wait for the copies."""
        moved: list[Any] = [t if t is None else t.to(device, non_blocking=True) for t in self]
        return HostBatch(*moved)


class BatchMaker:
    """Pixels and row numbers -> augmented images, labels and Eq. 4's weights."""

    def __init__(
        self,
        labels: Labels,
        config: Config,
        iteration: int,
        device: torch.device,
        statistics: ChannelStatistics = IMAGENET,
    ) -> None:
        self._labels, self._config, self._statistics = labels, config, statistics
        self._iteration, self._device = iteration, device
        self._by_features = weighs_by_features(config)
        if labels.centroids_KC is not None:
            self._centroids_KC = torch.tensor(labels.centroids_KC, device=device)

    def on_host(self, fed: FedBatch, epoch: int) -> HostBatch:
        """The host's work: look up labels and draw the augmentation."""
        labels, config = self._labels, self._config
        # Target rows are numbered after the source's, so that no two samples share a seed.
        samples_B = np.concatenate([fed.source_rows, len(labels.source_N) + fed.target_rows])
        seeds_B = sample_seeds(config.seed, self._iteration, epoch, fed.step, samples_B)
        table_BX = draw_table(seeds_B, config.input.height, config.input.width, config.augment)
        rows, feature_rows = fed.target_rows, fed.target_rows
        if labels.feature_rows is not None:
            feature_rows = np.searchsorted(labels.feature_rows, rows)

        def of_target(array_NX: NDArray[Any] | None, rows: NDArray[Any] = rows) -> Tensor | None:
            return None if array_NX is None else self._copied(array_NX[rows])

        return HostBatch(
            images_BHWC=pinned(fed.images_BHWC, self._device),
            table_BX=self._copied(table_BX),
            source_labels_S=self._copied(labels.source_N[fed.source_rows]),
            target_labels_T=of_target(labels.pseudo_labels_N),
            features_TC=of_target(labels.features_NC, feature_rows) if self._by_features else None,
            stripe_labels_TS=of_target(labels.stripe_labels_NS),
        )

    def on_device(self, given: HostBatch) -> TrainBatch:
        """The device's work: a function of these tensors alone, without a wait."""
        images_BCHW = given.images_BHWC.permute(0, 3, 1, 2)
        return TrainBatch(
            augment(images_BCHW, given.table_BX, self._statistics),
            given.source_labels_S,
            self._target_weights(given),
            given.target_labels_T,
            given.stripe_labels_TS,
        )

    def _target_weights(self, given: HostBatch) -> Tensor | None:
        """Eq. 4's weights (T, K), or those of Table 4's other two kinds of labels."""
        labels_T, num_clusters = given.target_labels_T, self._labels.num_clusters
        if labels_T is None:
            return None
        config = self._config.soft_labels
        match config.target_labels:
            case "hard":
                return hard_label_weights(labels_T, num_clusters)
            case "lsr":
                return lsr_weights(labels_T, num_clusters)
            case _:
                assert given.features_TC is not None
                literal = config.target_labels == "soft-literal"
                return soft_label_weights(
                    given.features_TC,
                    self._centroids_KC,
                    labels_T,
                    epsilon=config.epsilon,
                    form="literal" if literal else "normalized",
                    min_sq_distance=MIN_SQ_DISTANCE,
                )

    def _copied(self, array: NDArray[Any]) -> Tensor:
        return pinned(torch.from_numpy(array), self._device)
