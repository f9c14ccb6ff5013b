"""Exact neighbours from candidates: measured again, with proof that no nearer sample was missed.

Exact distances are sums of integers (`squared_distance`), so neither a bit nor a tie depends on
the tiles, the number of blocks, the machine or the device.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from cluster.arrays import Floats, Ints
from cluster.compiled import kernel

# Candidates kept beyond those asked for, so that the certificate has a gap to look at.
SLACK = 8
NUM_FARTHEST = 4

SEARCH_PRODUCTS = 1 << 24  # products held at once while rows are searched again
FIXED_POINT = 1 << 30  # of a coordinate; its square, 2^60, leaves room for |x - y|^2 <= 4


# fp32 products of some rows with all samples, (rows, N).
SquaredDistances: TypeAlias = Callable[[npt.NDArray[np.intp]], Floats]


class Candidates(NamedTuple):
    """Of the rows from `row_start`: the nearest others found so far, and the farthest.

    `near_RC` (int32) with `near_sq_RC` (float32, ascending; -1 and inf where there are none),
    `far_RF` with `far_sq_RF` likewise, descending (-1 and -inf).
    """

    row_start: int
    near_sq_RC: Floats
    near_RC: Ints
    far_sq_RF: Floats
    far_RF: Ints

    @property
    def samples(self) -> slice:
        """The rows, among all samples."""
        return slice(self.row_start, self.row_start + len(self.near_RC))


class Neighbours(NamedTuple):
    """`indices_NK` int32: the sample itself first, then by (distance, index); -1 where there are
    no more. `sq_distances_NK` float32, which is what they are ordered by; `max_sq_distance_N`
    float32, to the farthest sample.

    The first k columns are the k nearest that were asked for; after them may come others whose
    distance is known.
    """

    indices_NK: Ints
    sq_distances_NK: Floats
    max_sq_distance_N: Floats


class Groups(NamedTuple):
    """Restricts a search: to samples of the same group (`same`), or to those of other groups.

    `of_N` int32, ascending: rows are ordered by group (camera).
    """

    of_N: Ints
    same: bool


NO_GROUPS = Groups(np.empty(0, np.int32), True)  # all samples are one


class Search(NamedTuple):
    """What is searched: `k` neighbours, the sample itself counted if it may be one."""

    k: int
    scale: float  # coordinates times this are below `FIXED_POINT`
    groups: Groups = NO_GROUPS
    certify: bool = True  # False: the candidates are all there is, right or not
    by_cuvs: bool = False  # cuVS chooses the candidates, on a GPU
    operand: float = 0.0  # how far the products that choose them round an operand, relatively
    slack: int = SLACK
    num_far: int = NUM_FARTHEST

    def num_near(self, num_samples: int) -> int:
        """Length of a row's list of nearest candidates."""
        # A list of N has a place too many, which shows that no sample was turned away.
        return min(self.k + self.slack, num_samples)

    def rounding(self, dims: int) -> float:
        """`rounding_bound` of the products that choose candidates."""
        return rounding_bound(dims, self.operand)

    def meet(self, row: int, other: int) -> bool:
        """Whether two rows can be neighbours."""
        of_N, same = self.groups
        return len(of_N) == 0 or bool(of_N[row] == of_N[other]) == same

    def columns(self, row: int, num_samples: int) -> list[tuple[int, int]]:
        """(start, stop) of the samples that a row is searched among, itself included."""
        of_N, same = self.groups
        if len(of_N) == 0:
            return [(0, num_samples)]
        first, last = (int(np.searchsorted(of_N, of_N[row], side)) for side in ("left", "right"))
        return [(first, last)] if same else [(0, first), (last, num_samples)]


def rounding_bound(dims: int, operand: float = 0.0) -> float:
    """Bound on the rounding of a product's squared distance, relative to the two squared norms.

    The worst case: both operands rounded by the share `operand`, and every addition of the
    product's fp32 sum and of those of the two norms, in any order (Higham 2002, sec. 3.1).
    """
    return 2 * operand + operand**2 + 2 * (dims + 4) * 2**-24


def fixed_point_scale(features_ND: Floats) -> float:
    """A power of two: the same for all features of about the same largest norm."""
    largest = float(np.sqrt(np.einsum("nd,nd->n", features_ND, features_ND).max(initial=0)))
    # Norms just above 1 are 1, rounded; the fixed point has room for them.
    _, exponent = np.frexp(largest / 1.1)
    return float(np.ldexp(FIXED_POINT, -int(exponent)))


def refine(features_ND: Floats, search: Search, candidates: Candidates) -> Neighbours:
    """Exact neighbours of one row block from its candidates."""
    num_rows = len(candidates.near_RC)
    found = Neighbours(
        np.full((num_rows, search.k), -1, np.int32),
        np.zeros((num_rows, search.k), np.float32),
        np.zeros(num_rows, np.float32),
    )
    certified_R = np.zeros(num_rows, np.bool_)
    rounding = search.rounding(features_ND.shape[1])
    itself_first = search.groups.same
    _refine_rows(features_ND, search.scale, rounding, itself_first, candidates, found, certified_R)
    doubtful = np.flatnonzero(~certified_R & search.certify)
    measure = partial(fp32_distances, features_ND)
    search_again(features_ND, search, candidates.row_start, doubtful, found, measure)
    return found


def fp32_distances(features_ND: Floats, rows: npt.NDArray[np.intp]) -> Floats:
    """Squared distances of some rows to all samples by fp32 products, (rows, N)."""
    some = features_ND[rows]
    sq_RN: Floats = some @ features_ND.T
    sq_RN *= -2
    sq_RN += np.einsum("nd,nd->n", some, some)[:, None]
    sq_RN += np.einsum("nd,nd->n", features_ND, features_ND)
    return sq_RN


def search_again(
    features_ND: Floats,
    search: Search,
    row_start: int,
    rows: npt.NDArray[np.intp],
    found: Neighbours,
    measure: SquaredDistances,
) -> None:
    """Correct the `rows` of `found`, counted from `row_start`, that candidates left in doubt."""
    fp32 = rounding_bound(features_ND.shape[1])
    rows_at_once = max(1, SEARCH_PRODUCTS // len(features_ND))
    for start in range(0, len(rows), rows_at_once):
        some = rows[start : start + rows_at_once]
        sq_RN = measure(some + row_start)
        _search_rows(features_ND, search.scale, fp32, search.groups, row_start, some, sq_RN, found)


# ---- Kernels ----------------------------------------------------------------------------


@kernel
def squared_distance(features_ND: Floats, i: int, j: int, scale: float) -> np.float32:
    """|x_i - x_j|^2, float32: a sum of integers (units of scale^-2), whose order can't matter."""
    total = np.int64(0)
    for d in range(features_ND.shape[1]):
        difference = (np.float64(features_ND[i, d]) - np.float64(features_ND[j, d])) * scale
        total += np.int64(difference * difference)
    return np.float32(total * scale**-2)


@kernel
def _norm(row: Floats) -> float:
    sq_norm = 0.0
    for value in row:
        sq_norm += np.float64(value) ** 2
    return np.sqrt(sq_norm)  # type: ignore[no-any-return]


@kernel
def _rounding(norm: float, sq: float, scale: float, rounding: float) -> float:
    """How far products may be off the squared distance `sq` from a sample of length `norm`.

    The error grows with |x_i|^2 + |x_j|^2. |x_j| is at most |x_i| + |x_i - x_j|, and what
    `scale` leaves room for.
    """
    other_norm = min(norm + np.sqrt(sq), 1.1 * FIXED_POINT / scale)
    return rounding * (norm * norm + other_norm * other_norm)  # type: ignore[no-any-return]


@kernel
def _insert(sq: Floats, indices: Ints, num_held: int, value: np.float32, index: int) -> int:
    """Insert into a list ordered by (value, index); returns how many it holds now."""
    last = min(num_held, len(sq) - 1)
    if num_held == len(sq) and (sq[last] < value or (sq[last] == value and indices[last] < index)):
        return num_held
    place = last
    while place > 0 and (
        sq[place - 1] > value or (sq[place - 1] == value and indices[place - 1] > index)
    ):
        sq[place] = sq[place - 1]
        indices[place] = indices[place - 1]
        place -= 1
    sq[place] = value
    indices[place] = index
    return min(num_held + 1, len(sq))


@kernel
def _refine_rows(
    features_ND: Floats,
    scale: float,
    rounding: float,
    itself_first: bool,
    candidates: Candidates,
    found: Neighbours,
    certified_R: npt.NDArray[np.bool_],
) -> None:
    row_start, near_sq, near, far_sq, far = candidates
    indices_RK, sq_RK, max_sq_R = found
    k, num_near, num_far = indices_RK.shape[1], near.shape[1], far.shape[1]
    first = 1 if itself_first else 0
    for r in range(len(near)):
        i = row_start + r
        if itself_first:
            indices_RK[r, 0] = i
        # Candidates are sorted: every later one, and every sample that is none, is at least as far
        # (among the farthest, at most as far), up to rounding. So the row is certain once its k-th
        # exact distance is below that bound. A list with free places holds all samples.
        norm = _norm(features_ND[i])
        num_held = 0
        certified = k == first
        for c in range(num_near):
            j = near[r, c]
            if certified or j < 0:
                certified = True
                break
            if j == i:
                continue
            sq = squared_distance(features_ND, i, j, scale)
            num_held = _insert(sq_RK[r, first:], indices_RK[r, first:], num_held, sq, j)
            kth_sq = sq_RK[r, -1]
            off = _rounding(norm, kth_sq, scale, rounding)
            certified = num_held == k - first and kth_sq < near_sq[r, c] - off
        far_certified = False
        for c in range(num_far):
            if far_certified or far[r, c] < 0:
                far_certified = True
                break
            max_sq_R[r] = max(max_sq_R[r], squared_distance(features_ND, i, far[r, c], scale))
            off = _rounding(norm, max_sq_R[r], scale, rounding)
            far_certified = max_sq_R[r] > far_sq[r, c] + off
        certified_R[r] = certified and far_certified


@kernel
def _search_rows(
    features_ND: Floats,
    scale: float,
    rounding: float,
    groups: Groups,
    row_start: int,
    rows: npt.NDArray[np.intp],
    sq_RN: Floats,
    found: Neighbours,
) -> None:
    """Search whole rows again, with their fp32 distances `sq_RN` to all samples at hand."""
    group_N, same_group = groups
    indices_RK, sq_RK, max_sq_R = found
    first = 1 if same_group else 0
    k = indices_RK.shape[1]
    for place, r in enumerate(rows):
        i = row_start + r
        norm = _norm(features_ND[i])
        near_bound = sq_RK[r, -1] + _rounding(norm, sq_RK[r, -1], scale, rounding)
        far_bound = max_sq_R[r] - _rounding(norm, max_sq_R[r], scale, rounding)
        # A list that isn't full holds all samples.
        is_open = k > first and indices_RK[r, -1] >= 0
        num_held = 0
        for j in range(sq_RN.shape[1]):
            if j == i or (len(group_N) > 0 and (group_N[j] == group_N[i]) != same_group):
                continue
            is_near = is_open and sq_RN[place, j] <= near_bound
            if num_held == k - first and sq_RK[r, -1] == 0:
                is_near = False  # k copies with lower indices are there
            is_far = sq_RN[place, j] >= far_bound
            if is_near or is_far:
                sq = squared_distance(features_ND, i, j, scale)
                if is_near:
                    num_held = _insert(sq_RK[r, first:], indices_RK[r, first:], num_held, sq, j)
                if is_far:
                    max_sq_R[r] = max(max_sq_R[r], sq)
