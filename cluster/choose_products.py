"""Whether a search multiplies bf16 or fp32 on this CPU: whichever takes less time.

The closer neighbours lie together, the more candidates a row needs before its certificate holds
for products of bf16. Sampled rows tell how many.
"""

import numpy as np

from cluster.arrays import Floats
from cluster.bf16 import Halves, bf16_gemm, multiply, rounded
from cluster.refine import FIXED_POINT, SLACK, Search
from cluster.run import Handle, Runner

STAGE = "neighbours: bf16"
MIN_DIMS = 256  # below, the products are a small part of the work
NUM_SAMPLED = 64  # rows whose candidates are counted
DOUBTFUL = 0.02  # of the rows may need more candidates than they get; they are searched again
# Candidates beyond those asked for: with more than one for so many samples, or with more than so
# many, fp32 products take less time.
SAMPLES_PER_SLACK, MOST_SLACK = 200, 64
NUM_FARTHEST = 8


def in_bf16(
    runner: Runner, features: Handle, search: Search, num_samples: int
) -> tuple[Search, Handle]:
    """The search, and a handle of the operands of its products: `Halves` (N, D) where this takes
    less time than fp32, else the features. Waits for what samples need.

    Only features of length 1: matrix units take numbers below 2^-126 for 0.
    """
    if bf16_gemm() is None or search.scale != FIXED_POINT:
        return search, features
    ((halves, in_halves),) = runner.run(STAGE, with_halves, [()], features, search, num_results=2)
    found: Search = runner.values([in_halves])[0]
    most = min(MOST_SLACK, SLACK + num_samples // SAMPLES_PER_SLACK)
    return (search, features) if found.operand == 0 or found.slack > most else (found, halves)


def with_halves(features_ND: Floats, search: Search) -> tuple[Halves, Search]:
    """The features as bf16, and the search that products of these take; where there are too few
    dimensions, nothing and the search as it is."""
    if features_ND.shape[1] < MIN_DIMS:
        return np.empty((0, 0), np.uint16), search
    halves_ND, operand = rounded(features_ND)
    search = search._replace(operand=operand, num_far=NUM_FARTHEST)
    needed = candidates_needed(halves_ND, search)
    slack = int(np.quantile(needed, 1 - DOUBTFUL)) + 3 - search.k
    return halves_ND, search._replace(slack=max(slack, SLACK))


def candidates_needed(halves_ND: Halves, search: Search) -> list[int]:
    """How many candidates sampled rows need: those within the rounding of the k-th nearest."""
    num_samples, dims = halves_ND.shape
    rows = np.linspace(0, num_samples - 1, min(NUM_SAMPLED, num_samples)).astype(np.intp)
    products_RN = np.empty((len(rows), num_samples), np.float32)
    multiply(halves_ND[rows], halves_ND, products_RN)
    sq_RN = 2 - 2 * products_RN
    sq_RN[np.arange(len(rows)), rows] = np.inf
    needed = []
    for row, sq_N in zip(rows, sq_RN, strict=True):
        columns = search.columns(int(row), num_samples)
        sq = np.concatenate([sq_N[slice(*column)] for column in columns])
        kth = min(max(1, search.k - search.groups.same), len(sq)) - 1
        kth_sq = np.partition(sq, kth)[kth] if len(sq) else 0.0
        needed.append(int((sq <= kth_sq + 2.2 * search.rounding(dims)).sum()))
    return needed
