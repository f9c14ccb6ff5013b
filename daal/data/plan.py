"""Which images make up which batch, decided before anything is read.

A pure function of (seed, iteration, step): any step of any run can be recomputed, resuming
is "start at step n", and the global batches don't depend on the number of workers.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Row numbers of the images of one batch in the source and the target table."""

    step: int  # counted from the start of the fit
    source: Indices
    target: Indices
    num_parts: int = 1  # consecutive rows that are trained on one after the other

    def share(self, rank: int, world_size: int) -> "Batch":
        """One worker's equal share of each part; the union over ranks is the global batch.

        A part is made up of the same images, and so of the same identities, on any number of
        workers.
        """
        source, target = (
            rows.reshape(self.num_parts, len(rows) // self.num_parts)[:, rank::world_size].ravel()
            for rows in (self.source, self.target)
        )
        return Batch(self.step, source, target, self.num_parts)


@dataclass(frozen=True)
class Plan:
    """All batches of one fit.

    `source_rows` and `target_rows` are the rows that take part (outliers are left out of
    `target_rows`); `target_labels` are their pseudo-labels, used for P x K batches only. Each
    batch has `num_parts` parts; those of a P x K batch hold all K images of each of their
    identities, as `daal.config` has checked.
    """

    seed: int
    iteration: int
    epochs: int
    batch_source: int
    batch_target: int
    source_rows: Indices
    target_rows: Indices
    target_labels: Indices
    images_per_id: int | None = None
    steps_per_epoch: int = 0  # 0: one pass over the target rows, or the source's without a target
    num_parts: int = 1
    _orders: dict[int, tuple[Indices, Indices]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.steps_per_epoch == 0:
            rows, batch = (
                (self.target_rows, self.batch_target)
                if self.batch_target
                else (self.source_rows, self.batch_source)
            )
            object.__setattr__(self, "steps_per_epoch", max(1, len(rows) // batch))

    @property
    def num_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def epoch_of(self, step: int) -> int:
        return step // self.steps_per_epoch

    def batch(self, step: int) -> Batch:
        """The global batch of a step."""
        epoch, at = divmod(step, self.steps_per_epoch)
        source, target = self._order(epoch)
        return Batch(
            step,
            source[at * self.batch_source : (at + 1) * self.batch_source],
            target[at * self.batch_target : (at + 1) * self.batch_target],
            self.num_parts,
        )

    def _order(self, epoch: int) -> tuple[Indices, Indices]:
        if epoch not in self._orders:
            rng = np.random.default_rng([self.seed, self.iteration, epoch])
            source = passes(rng, self.source_rows, self.steps_per_epoch * self.batch_source)
            if self.images_per_id:
                target = identity_passes(
                    rng,
                    self.target_rows,
                    self.target_labels,
                    self.steps_per_epoch * self.batch_target // self.images_per_id,
                    self.images_per_id,
                )
            else:
                target = passes(rng, self.target_rows, self.steps_per_epoch * self.batch_target)
            self._orders.clear()  # one epoch at a time is needed
            self._orders[epoch] = (source, target)
        return self._orders[epoch]


def passes(rng: np.random.Generator, rows: Indices, count: int) -> Indices:
    """`count` rows in random order, each pass over all of them complete before the next."""
    if count == 0:
        return np.empty(0, np.int64)
    num_passes = -(-count // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(num_passes)])[:count]


def identity_passes(
    rng: np.random.Generator, rows: Indices, labels: Indices, count: int, images_per_id: int
) -> Indices:
    """P x K order: `count` identities in random passes, `images_per_id` rows of each.

    An identity with fewer rows gives all of them and repeats some.
    """
    by_label = np.argsort(labels, kind="stable")
    ids, starts = np.unique(labels[by_label], return_index=True)
    members = dict(zip(ids.tolist(), np.split(rows[by_label], starts[1:]), strict=True))
    chosen = [
        passes(rng, members[int(identity)], images_per_id) for identity in passes(rng, ids, count)
    ]
    return np.concatenate(chosen)
