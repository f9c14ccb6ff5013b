"""One training on the cluster: pretraining, adapting, or the supervised bound."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from cluster.centroids import centroids
from cluster.given_features import Features, loaded
from cluster.ray_run import as_task, result_of
from daal.config import Config, FitConfig
from daal.data.plan import Plan
from daal.errors import DataError
from daal.nn.network import DaalNetwork
from pipelines.images.ingest import Images
from pipelines.images.pixels import Pixels
from pipelines.images.stream import StreamSource
from pipelines.show.progress import Progress
from pipelines.training.train_batch import Labels, weighs_by_features
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
        return self._fit(stage, fit, 0, plan, images, images, ray.put(labels), self.untrained())

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
        features: Features,
        pseudo_labels_NP: NDArray[np.int64],
        start: Weights,
    ) -> Weights:
        """Line 6 of Algorithm 1: Eq. 7 on both domains, without outliers (-1).

        `features` are of the training images, of the whole body. pseudo_labels_NP has a row for
        every row of the target's table, a column for the whole body and one for each stripe.
        Without source images in the batches, only the target's part of Eq. 7 remains.
        """
        pseudo_labels_N = pseudo_labels_NP[:, 0]
        fit = self.config.adapt
        if source is None or fit.batch_source == 0:
            source, known, source_rows = target, Labels(NO_ROWS, 0), NO_ROWS
        else:
            known, source_rows = class_labels(source)
        labels = replace(
            known,
            pseudo_labels_N=pseudo_labels_N,
            feature_rows=target.rows("train"),
            stripe_labels_NS=pseudo_labels_NP[:, 1:] if self.config.network.stripes else None,
        )
        task = as_task(with_features).options(name="centroids", num_returns=2)
        of_fit, is_done = task.remote(labels, features, weighs_by_features(self.config))
        result_of(is_done)  # raises what the task raised
        target_rows = np.flatnonzero(pseudo_labels_N >= 0)
        plan = self._plan(fit, iteration, source_rows, target_rows, pseudo_labels_N[target_rows])
        return self._fit(stage, fit, iteration, plan, source, target, of_fit, start)

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
        labels: ray.ObjectRef[Any],
        start: Weights,
    ) -> Weights:
        stream = StreamSource(
            ray.put(plan),
            self.pixels.source(source),
            self.pixels.source(target),
            self.config.input,
        )
        job = FitJob(stage, self.config, fit, iteration, stream, labels, ray.put(start))
        weights: Weights
        weights, figures = self.workers.run(job)[0]
        self.progress.figures(stage, **figures)
        return weights


def with_features(labels: Labels, features: Features, keeps: bool) -> tuple[Labels, bool]:
    """A task: the labels with their clusters' centroids and, if a fit `keeps` them, with features,
    which workers read in place; and True, which is small enough to be waited for."""
    assert labels.pseudo_labels_N is not None and labels.feature_rows is not None
    features_TC = np.asarray(loaded(features), np.float32)
    centroids_KC = centroids(features_TC, labels.pseudo_labels_N[labels.feature_rows])
    kept_TC = features_TC if keeps else None
    return replace(labels, features_NC=kept_TC, centroids_KC=centroids_KC), True


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
