"""One training on the cluster: pretraining, adapting, or the supervised bound."""

from dataclasses import dataclass, replace

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from cluster.centroids import centroids
from daal.config import Config, FitConfig
from daal.data.plan import Plan
from daal.errors import DataError
from daal.nn.network import DaalNetwork
from daal.nn.stripes import whole_and_stripes
from pipelines.images.ingest import Images
from pipelines.images.pixels import Pixels
from pipelines.images.stream import StreamSource
from pipelines.show.progress import Progress
from pipelines.training.train_batch import Labels
from pipelines.training.train_loop import FitJob
from pipelines.training.train_state import Weights
from pipelines.workers.group import Workers

NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Trainer:
    """Gives trainings to the workers of a run."""

    config: Config
    workers: Workers
    pixels: Pixels
    progress: Progress

    def supervised(self, stage: str, images: Images) -> Weights:
        """Line 1 of Algorithm 1: Eq. 3 on a labelled domain, from the backbone's own weights."""
        labels, rows = class_labels(images)
        fit = self.config.pretrain
        plan = self._plan(fit, 0, rows, NO_ROWS, NO_ROWS)
        return self._fit(stage, fit, 0, plan, images, images, labels, self.untrained())

    def untrained(self) -> Weights:
        """The network with the backbone's own weights, everything else drawn with the seed."""
        torch.manual_seed(self.config.seed)
        network = DaalNetwork(self.config.network, input=self.config.input)
        return {n: t.numpy() for n, t in network.state_dict().items()}

    def adapt(
        self,
        stage: str,
        iteration: int,
        source: Images | None,
        target: Images,
        features_NX: NDArray[np.float32],
        pseudo_labels_NP: NDArray[np.int64],
        start: Weights,
    ) -> Weights:
        """Line 6 of Algorithm 1: Eq. 7 on both domains, without outliers (-1).

        features_NX and pseudo_labels_NP have a row for every row of the target's table; labels
        have a column for the whole body and one for each stripe. Without source images in the
        batches, only the target's part of Eq. 7 remains.
        """
        features_NC = whole_and_stripes(features_NX, self.config.network.stripes)[0]
        pseudo_labels_N = pseudo_labels_NP[:, 0]
        fit = self.config.adapt
        if source is None or fit.batch_source == 0:
            source, known, source_rows = target, Labels(NO_ROWS, 0), NO_ROWS
        else:
            known, source_rows = class_labels(source)
        labels = replace(
            known,
            pseudo_labels_N=pseudo_labels_N,
            features_NC=features_NC,
            centroids_KC=np.asarray(centroids(features_NC, pseudo_labels_N), np.float32),
            stripe_labels_NS=pseudo_labels_NP[:, 1:] if self.config.network.stripes else None,
        )
        target_rows = np.flatnonzero(pseudo_labels_N >= 0)
        plan = self._plan(fit, iteration, source_rows, target_rows, pseudo_labels_N[target_rows])
        return self._fit(stage, fit, iteration, plan, source, target, labels, start)

    def _plan(
        self,
        fit: FitConfig,
        iteration: int,
        source_rows: NDArray[np.int64],
        target_rows: NDArray[np.int64],
        target_labels: NDArray[np.int64],
    ) -> Plan:
        return Plan(
            seed=self.config.seed,
            iteration=iteration,
            epochs=fit.epochs,
            batch_source=fit.batch_source,
            batch_target=fit.batch_target,
            source_rows=source_rows,
            target_rows=target_rows,
            target_labels=target_labels,
            images_per_id=fit.images_per_id,
            steps_per_epoch=fit.steps_per_epoch or 0,
            num_parts=self.config.accumulate,
        )

    def _fit(
        self,
        stage: str,
        fit: FitConfig,
        iteration: int,
        plan: Plan,
        source: Images,
        target: Images,
        labels: Labels,
        start: Weights,
    ) -> Weights:
        stream = StreamSource(
            ray.put(plan),
            self.pixels.source(source),
            self.pixels.source(target),
            self.config.input,
        )
        job = FitJob(stage, self.config, fit, iteration, stream, ray.put(labels), ray.put(start))
        weights: Weights
        weights, figures = self.workers.run(job)[0]
        self.progress.figures(stage, **figures)
        return weights


def class_labels(images: Images) -> tuple[Labels, NDArray[np.int64]]:
    """Class indices of the known identities, and the training rows that have one."""
    pids = images.column("pid")
    rows = images.rows("train")
    rows = rows[pids[rows] >= 0]
    if len(rows) == 0:
        raise DataError("the labelled domain has no training image with a known identity.")
    ids, classes = np.unique(pids[rows], return_inverse=True)
    source_N = np.full(len(pids), -1, np.int64)
    source_N[rows] = classes
    return Labels(source_N, len(ids)), rows
