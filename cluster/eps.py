"""eps: by which rule, and from the smallest distances between samples (paper: Learning section).

`pipelines.adapt` keeps the first iteration's or not (`cluster.refit_eps`), and
`cluster.estimate.cluster_encodings` takes a smaller one while there is a giant cluster.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from cluster.rerank import (
    NUM_BINS,
    ZERO,
    InvertedIndex,
    distance_histogram,
    distances_below,
    row_of_entry,
)
from cluster.runner import Handle, Runner
from daal.config import VALUE_OF_RULE, ClusterConfig
from daal.errors import LabelError

TOLERANCE = 1e-6  # Jaccard distances pile up on fractions, and eps may be one of them
MAX_PAIRS = 400_000_000  # distances stored: some 10 GB
SAMPLED_ROWS = 2000  # whose distances tell where eps will be
EPS_BACKOFF = 0.8


def eps_setting(config: ClusterConfig) -> str:
    """The key whose value decides on eps: "cluster.p", "cluster.q" or "cluster.eps"."""
    return f"cluster.{VALUE_OF_RULE[config.eps_rule]}"


class EpsRule(NamedTuple):
    """eps is `value`; or, if that is a share, the mean of so many of the smallest distances.

    `setting` is what a user would change.
    """

    value: float
    setting: str
    is_share: bool = False

    @classmethod
    def of(cls, config: ClusterConfig, num_samples: int, kept: float | None) -> "EpsRule":
        """What is configured, unless an eps is `kept` from an earlier iteration.

        The paper's p is a share of all N (N - 1) / 2 pairs; q pairs an image are N q of them.
        """
        setting = eps_setting(config)
        if kept is not None:
            return cls(kept, setting if config.eps_rule == "fixed" else f"eps (by {setting})")
        if config.eps is not None:
            return cls(config.eps, setting)
        if config.q is not None:
            return cls(min(1.0, 2 * config.q / (num_samples - 1)), setting, is_share=True)
        assert config.p is not None  # one of the three is given
        return cls(config.p, setting, is_share=True)

    @property
    def p(self) -> float | None:
        return self.value if self.is_share else None

    def eps(self, distances: npt.NDArray[np.float32], num_samples: int) -> float:
        """From the pairs' distances, each given once, in any order. Raises LabelError."""
        return eps_of_pairs(distances, num_samples, self.value) if self.is_share else self.value

    def smaller(self) -> "EpsRule":
        """A step back from a giant cluster: half the pairs, or 0.8 of an eps that was given."""
        return self._replace(value=self.value * (0.5 if self.is_share else EPS_BACKOFF))


def num_smallest(num_samples: int, num_zero_pairs: int, p: float) -> int:
    """How many pairs the share p selects: of all pairs of samples but those at distance 0.

    Raises LabelError if that is none.
    """
    num_pairs = num_samples * (num_samples - 1) // 2 - num_zero_pairs
    if num_pairs == 0:
        raise LabelError(
            f"eps can't be estimated: the {num_samples} samples have the same neighbours, so that "
            "all their Jaccard distances are 0; use a smaller cluster.k1, or more images."
        )
    num_selected = int(np.round(p * num_pairs))
    if num_selected == 0:
        most = 0.5 / num_pairs  # of all that select none, as half a pair rounds to none
        raise LabelError(
            f"p={p:g} selects none of the {num_pairs} pairs of {num_samples} samples; use "
            f"p={_just_above(most):g} (or q={_just_above(most * (num_samples - 1) / 2):g}) or "
            "more, or more images."
        )
    return min(num_selected, num_pairs)


def _just_above(value: float) -> float:
    """The next number of three digits; one that differs by rounding only is the value itself."""
    step = 10.0 ** (np.floor(np.log10(value)) - 2)
    return float(f"{(np.floor(value / step * (1 + 1e-9)) + 1) * step:.2e}")


def estimate_eps(distance: csr_array, p: float) -> float:
    """Mean of the smallest share p of all distances (the paper's Learning section).

    `distance`: symmetric, absent pairs count as 1. Each pair counts once, the diagonal not at
    all, and neither do distances up to 1e-6: copies of an image say nothing about identity
    (Song et al. 2018 leave out zeros). `distance` may leave out large distances as long as it
    holds all of the smallest share p.
    Raises LabelError if p selects no pair, naming the smallest p that does.
    """
    upper = distance.indices > row_of_entry(distance)
    return eps_of_pairs(distance.data[upper], distance.shape[0], p)


def eps_of_pairs(distances: npt.NDArray[np.float32], num_samples: int, p: float) -> float:
    """`estimate_eps` from the distances of the pairs, each given once, in any order."""
    num_zero = int((distances <= ZERO).sum())
    num_selected = num_smallest(num_samples, num_zero, p)
    num_smaller = num_zero + num_selected
    if num_smaller < len(distances):
        distances = np.partition(distances, num_smaller)[:num_smaller]
    # Sorted before they are summed, so that the last bit doesn't depend on partition's order.
    values = np.sort(distances)[num_zero:].astype(np.float64)
    return float((values.sum() + num_selected - len(values)) / num_selected)


def reach(eps: float) -> float:
    """Distances below this one are all that DBSCAN looks at."""
    return min(1.0, eps + 2 * TOLERANCE)


def distances_up_to(
    runner: Runner,
    encodings: Handle,
    index: InvertedIndex | Handle,
    num_samples: int,
    eps: float,
    below: float,
    blocks: list[tuple[int, int]],
    setting: str,
) -> csr_array:
    """Strict upper triangle of the distances smaller than `below`.

    Raises LabelError if more pairs are within eps than memory may hold; some rows tell.
    """
    every = max(1, num_samples // SAMPLED_ROWS)
    num_zero, counts = distance_histogram(runner, encodings, index, blocks, every)
    check_number(every * (num_zero + counts[: int(eps * NUM_BINS)].sum()), num_samples, setting)
    return distances_below(runner, encodings, index, below, blocks)


def smallest_distances(
    runner: Runner,
    encodings: Handle,
    index: InvertedIndex | Handle,
    num_samples: int,
    p: float,
    blocks: list[tuple[int, int]],
    setting: str = "cluster.p",
) -> csr_array:
    """Strict upper triangle of the distances that hold the smallest share p of all pairs.

    Some rows' distances, counted in bins, tell how far that reaches; only ten or so pairs an
    image are then stored where there are thousands below 1. Should the guess fall short, all
    rows are counted and stored again. Raises LabelError if p selects no pair.
    """
    every = max(1, num_samples // SAMPLED_ROWS)
    num_zero, counts = distance_histogram(runner, encodings, index, blocks, every)
    if every > 1:
        wanted = 1.1 * p * num_samples * (num_samples - 1) / 2
        check_number(min(wanted, every * counts.sum()) + every * num_zero, num_samples, setting)
        cut = distance_at(counts, wanted / every)
        upper = distances_below(runner, encodings, index, cut, blocks)
        num_zero = int((upper.data <= ZERO).sum())
        num_selected = num_smallest(num_samples, num_zero, p)
        # eps may be the largest of those selected, and DBSCAN looks a little beyond it.
        num_below = int((upper.data < cut - 2 * TOLERANCE).sum())
        if cut == 1 or num_below - num_zero >= num_selected:
            return upper
        num_zero, counts = distance_histogram(runner, encodings, index, blocks)
    cut = distance_at(counts, num_smallest(num_samples, num_zero, p))
    return distances_below(runner, encodings, index, cut, blocks)


def check_number(num_pairs: float, num_samples: int, setting: str) -> None:
    """Refuse to store more pairs than memory may hold. Raises LabelError."""
    if num_pairs > MAX_PAIRS:
        raise LabelError(
            f"eps would make some {num_pairs / num_samples:.0f} pairs an image neighbours, "
            f"{num_pairs:.2g} in all: one giant cluster; use a smaller {setting}"
            + ("." if "cluster.q" in setting else ", or cluster.q=10.35 (pairs an image).")
        )


def distance_at(counts: npt.NDArray[np.int64], num_pairs: float) -> float:
    """Below it are `num_pairs` pairs of those counted, or all of them."""
    last_bin = int(np.searchsorted(np.cumsum(counts), num_pairs))
    return reach((last_bin + 1) / NUM_BINS)
