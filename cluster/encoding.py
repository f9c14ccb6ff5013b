"""k-reciprocal encodings (Zhong et al. 2017, sec. 3): each sample as weights over neighbours.

    reciprocal flags -> weights over the expanded set R* -> mean over the k2 nearest

Weights are integers in units of 2^-30, and the exponential comes from tables. Sums of integers
don't depend on their order, so the same bits come out of any number of blocks, any numbering of
the samples and any CPU, and rows that are equal on paper are equal.

Samples are renumbered first, so that neighbours lie near each other in memory
(`cluster.locality`): from here to the labels, row r is sample order[r].
"""

from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, issparse, vstack

from cluster.arrays import ONE, Floats, Ints
from cluster.compiled import grown, kernel
from cluster.locality import locality_order, renumbered
from cluster.refine import Neighbours, squared_distance
from cluster.run import Handle, Runner, Stage, run_one

EXP_ONE = float(1 << 32)  # exp(0), before a row is scaled to sum `ONE`
EXP_BITS = 11  # of the argument, in each table
EXP_STEP = float(1 << 30)  # the argument's fixed point
FULL, HALF = 1, 2  # flags of a reciprocal neighbour

Dialect: TypeAlias = Literal["zhong", "faiss"]
Flags: TypeAlias = npt.NDArray[np.uint8]
Tables: TypeAlias = npt.NDArray[np.float64]


class Reciprocity(NamedTuple):
    """How many of the nearest count, and how a distance becomes a weight.

    zhong: the sample and its k1 nearest; exp(-d2 / max d2). faiss: the sample and its k1 - 1
    nearest, as faiss's k counts the sample itself; exp(-d2) (the code of SpCL, Cluster Contrast
    and OpenUnReID). For the half sets both take the sample and its k1/2 nearest.
    """

    num_full: int
    num_half: int
    by_farthest: bool

    @staticmethod
    def of(k1: int, dialect: Dialect) -> "Reciprocity":
        num_full = k1 + 1 if dialect == "zhong" else k1
        # round is half-to-even, as theirs: 25 -> 12
        return Reciprocity(num_full, min(round(k1 / 2) + 1, num_full), dialect == "zhong")


def encode(
    runner: Runner,
    features: Handle,
    scale: float,
    neighbours: Handle,
    reciprocity: Reciprocity,
    k2: int,
    blocks: list[tuple[int, int]],
) -> tuple[Handle, Handle]:
    """Handles of the encodings, a csr_array of int32 (N, N), and of the order of their rows.

    `features` and `scale` are those the neighbours were found with.
    """
    order = run_one(runner, "encoding: order", locality_order, neighbours)
    neighbours = run_one(runner, "encoding: order", renumbered, neighbours, order)

    def of_all_rows(stage: str, function: Stage, *shared: Any) -> Handle:
        return run_joined(runner, f"encoding: {stage}", function, blocks, *shared)

    flags = of_all_rows("reciprocal", reciprocal_flags, neighbours, reciprocity)
    raw = of_all_rows("weights", weights, features, scale, order, neighbours, flags, reciprocity)
    return of_all_rows("average", average_nearest, raw, neighbours, k2), order


def run_joined(
    runner: Runner, stage: str, function: Stage, blocks: list[tuple[int, int]], *shared: Any
) -> Handle:
    """Handle of all rows of what a stage finds in row blocks."""
    parts = runner.run(stage, function, blocks, *shared)
    return run_one(runner, "encoding: join", join_rows, *parts)


def join_rows(*parts: Any) -> Any:
    """Row blocks, dense or sparse, one below the other."""
    return vstack(parts, format="csr") if issparse(parts[0]) else np.concatenate(parts)


# ---- Functions of a row block -----------------------------------------------------------


def reciprocal_flags(
    neighbours: Neighbours, counts: Reciprocity, row_start: int, row_stop: int
) -> Flags:
    """Which neighbours have the sample among theirs, (rows, num_full) uint8.

    FULL: within the first num_full of both lists, R(i, k1). HALF: within the first num_half,
    R(i, k1/2).
    """
    flags: Flags = _flags_kernel(neighbours.indices_NK, counts, row_start, row_stop)
    return flags


def weights(
    features_ND: Floats,
    scale: float,
    order_N: Ints,
    neighbours: Neighbours,
    flags_NK: Flags,
    counts: Reciprocity,
    row_start: int,
    row_stop: int,
) -> csr_array:
    """Gaussian weights over each sample's expanded set, rows row_start..row_stop.

    R*(i): R(i, k1) and every R(q, k1/2), q in R(i, k1), that shares more than 2/3 of itself with
    R(i, k1). Weights exp(-d2 / max d2) over R*(i), scaled to sum 1 (Zhong et al. 2017, sec.
    3.2-3.3; distances divided by the row's largest as in their code), or their softmax
    (`Reciprocity`).
    """
    num_samples = len(neighbours.indices_NK)
    indptr, indices, data = _weights_kernel(
        features_ND,
        scale,
        order_N,
        neighbours,
        flags_NK,
        counts,
        exp_tables(),
        row_start,
        row_stop,
    )
    return csr_array((data, indices, indptr), shape=(row_stop - row_start, num_samples))


def average_nearest(
    raw: csr_array, neighbours: Neighbours, k2: int, row_start: int, row_stop: int
) -> csr_array:
    """Mean of the weights of each sample's k2 nearest (Zhong et al. 2017, sec. 3.4)."""
    return average_rows(raw, neighbours.indices_NK[row_start:row_stop, :k2])


def average_rows(raw: csr_array, averaged_RK: Ints) -> csr_array:
    """For every row of `averaged_RK` the mean of those rows of `raw`, -1 standing for no row.

    Rounded, so that rows sum to `ONE` but for half a unit of each entry.
    """
    indptr, indices, data = _average_kernel(
        raw.indptr, raw.indices, raw.data, np.ascontiguousarray(averaged_RK)
    )
    return csr_array((data, indices, indptr), shape=(len(averaged_RK), raw.shape[1]))


@lru_cache(maxsize=1)
def exp_tables() -> Tables:
    """exp(-x) for x = (a 2^22 + b 2^11 + c) / 2^30 is the product of tables[0, a], [1, b], [2, c].

    Processors and libraries differ in the last bit of exp, but not in that of a product.
    (3, 2048) float64, correctly rounded.
    """
    tables = np.empty((3, 1 << EXP_BITS))
    with localcontext() as context:
        context.prec = 25
        for place, shift in enumerate((22, 11, 0)):
            step = (Decimal(-1) * (1 << shift) / (1 << 30)).exp()
            power = Decimal(1)
            for number in range(1 << EXP_BITS):
                tables[place, number] = float(power)
                power *= step
    return tables


# ---- Kernels ----------------------------------------------------------------------------


@kernel
def is_among(value: int, row: Ints, count: int) -> bool:
    for place in range(count):  # noqa: SIM110 (numba has no any())
        if row[place] == value:
            return True
    return False


@kernel
def _flags_kernel(indices_NK: Ints, counts: Reciprocity, row_start: int, row_stop: int) -> Flags:
    num_full = min(counts.num_full, indices_NK.shape[1])
    num_half = min(counts.num_half, num_full)
    flags = np.zeros((row_stop - row_start, num_full), np.uint8)
    for i in range(row_start, row_stop):
        for place in range(num_full):
            j = indices_NK[i, place]
            if j >= 0 and is_among(i, indices_NK[j], num_full):
                flags[i - row_start, place] = FULL
                if place < num_half and is_among(i, indices_NK[j], num_half):
                    flags[i - row_start, place] = FULL | HALF
    return flags


@kernel
def exponential(x: float, tables: Tables) -> np.int64:
    """exp(-x) in units of 2^-32; x from 8 on counts as 8."""
    fixed = np.int64(min(x * EXP_STEP, 8 * EXP_STEP - 1))
    mask = (1 << EXP_BITS) - 1
    a, b, c = fixed >> (2 * EXP_BITS), (fixed >> EXP_BITS) & mask, fixed & mask
    return np.int64(tables[0, a] * tables[1, b] * tables[2, c] * EXP_ONE + 0.5)


@kernel
def normalise_row(gaussian: Any, num_members: int, out: Any) -> None:
    """Scale exponentials to sum 1, in units of 2^-30."""
    total = np.int64(0)
    for m in range(num_members):
        total += gaussian[m]
    for m in range(num_members):
        out[m] = (gaussian[m] * ONE + total // 2) // total


@kernel
def _weights_kernel(
    features_ND: Floats,
    scale: float,
    order_N: Ints,
    neighbours: Neighbours,
    flags_NK: Flags,
    counts: Reciprocity,
    tables: Tables,
    row_start: int,
    row_stop: int,
) -> Any:
    indices_NK, sq_NK, max_sq_N = neighbours
    num_samples = len(indices_NK)
    num_rows, num_full = row_stop - row_start, flags_NK.shape[1]
    num_half = min(counts.num_half, num_full)
    most = min(num_full * (num_half + 1), num_samples)
    indptr = np.zeros(num_rows + 1, np.int64)
    out_indices = np.empty(num_rows * num_full + most, np.int32)
    out_weights = np.empty(num_rows * num_full + most, np.int32)
    gaussian = np.empty(most, np.int64)
    half = np.empty(num_half, np.int32)
    reciprocal = np.empty(num_full, np.int32)
    # What a sample is to the row at work: a member of R or of R* if it bears the row's mark.
    in_core = np.full(num_samples, -1, np.int32)
    in_expanded = np.full(num_samples, -1, np.int32)
    # Likewise whether its distance is known, and which.
    is_near = np.full(num_samples, -1, np.int32)
    near_sq = np.empty(num_samples, np.float32)
    end = 0
    for i in range(row_start, row_stop):
        start = end
        if end + most > len(out_indices):
            out_indices, out_weights = grown(out_indices, end), grown(out_weights, end)
        for place in range(indices_NK.shape[1]):
            j = indices_NK[i, place]
            if j >= 0:
                is_near[j] = i
                near_sq[j] = sq_NK[i, place]
        num_reciprocal = 0
        for place in range(num_full):
            if flags_NK[i, place] & FULL:
                j = indices_NK[i, place]
                reciprocal[num_reciprocal] = j
                num_reciprocal += 1
                in_core[j] = in_expanded[j] = i
                out_indices[end] = j
                end += 1
        for m in range(num_reciprocal):
            q = reciprocal[m]
            num_in_half = 0
            num_shared = 0
            for place in range(num_half):
                if flags_NK[q, place] & HALF:
                    h = indices_NK[q, place]
                    half[num_in_half] = h
                    num_in_half += 1
                    num_shared += in_core[h] == i
            if 3 * num_shared > 2 * num_in_half:
                for place in range(num_in_half):
                    if in_expanded[half[place]] != i:
                        in_expanded[half[place]] = i
                        out_indices[end] = half[place]
                        end += 1
        members = out_indices[start:end]
        members.sort()
        largest = np.float64(max_sq_N[i]) if counts.by_farthest else 1.0
        if largest == 0.0:  # all samples are identical
            largest = 1.0
        for m in range(len(members)):
            j = members[m]
            sq = near_sq[j]
            if is_near[j] != i:
                sq = squared_distance(features_ND, order_N[i], order_N[j], scale)
            gaussian[m] = exponential(np.float64(sq) / largest, tables)
        normalise_row(gaussian, len(members), out_weights[start:end])
        indptr[i - row_start + 1] = end
    return indptr, out_indices[:end], out_weights[:end]


@kernel
def _average_kernel(indptr: Any, indices: Any, weights: Any, averaged_RK: Ints) -> Any:
    num_rows, most_averaged = averaged_RK.shape
    capacity = 0
    for r in range(num_rows):
        for place in range(most_averaged):
            q = averaged_RK[r, place]
            if q >= 0:
                capacity += indptr[q + 1] - indptr[q]
    out_indptr = np.zeros(num_rows + 1, np.int64)
    out_indices = np.empty(capacity, np.int32)
    out_weights = np.empty(capacity, np.int32)
    sums = np.zeros(len(indptr) - 1, np.int64)
    end = 0
    for r in range(num_rows):
        start = end
        num_averaged = 0
        for place in range(most_averaged):
            q = averaged_RK[r, place]
            if q < 0:
                continue
            num_averaged += 1
            for entry in range(indptr[q], indptr[q + 1]):
                j = indices[entry]
                if sums[j] == 0:
                    out_indices[end] = j
                    end += 1
                sums[j] += weights[entry]
        members = out_indices[start:end]
        members.sort()
        for entry in range(start, end):
            j = out_indices[entry]
            out_weights[entry] = (2 * sums[j] + num_averaged) // (2 * num_averaged)
            sums[j] = 0
        out_indptr[r + 1] = end
    return out_indptr, out_indices[:end], out_weights[:end]
