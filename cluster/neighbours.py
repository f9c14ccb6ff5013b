"""Exact k-nearest neighbours of every sample, by tiles, without an N x N matrix.

1. `tile_candidates`: fp32 products of row blocks, each tile computed once and used for its
   rows and for its columns; a running list of the `k + SLACK` nearest (and of the few
   farthest) candidates of every sample.
2. `refine_block`: candidates are measured again in fp64 and ordered by (distance, index). A
   certificate shows that fp32 rounding can't have hidden a nearer sample; rows without it
   (plateaus of equal distances) are searched again, row by row.

The second step makes the result exact, so it doesn't depend on the tiles, the number of
blocks, the threads or the device.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from cluster.blocks import MapBlocks, kernel, map_threads, row_blocks

Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int32]

SLACK = 8  # candidates kept beyond k, so that the certificate has a gap to look at
NUM_FARTHEST = 4  # the same for the farthest sample
TILE = 2048  # rows: a tile of fp32 products is 16 MB
CHUNK = 32  # products looked at together before any of them is looked at alone
ROUNDING = 1e-5  # bound on fp32 rounding of a squared distance, relative to the squared norms
SEARCH_PRODUCTS = 1 << 24  # products held at once while rows are searched again


class Candidates(NamedTuple):
    """Nearest and farthest samples of the rows from `row_start`, by fp32 distances.

    `near_RC` (int32) with `near_sq_RC` (float32, ascending; inf and -1 where there are
    none), `far_RF` with `far_sq_RF` likewise, descending.
    """

    row_start: int
    near_sq_RC: Floats
    near_RC: Ints
    far_sq_RF: Floats
    far_RF: Ints


class Neighbours(NamedTuple):
    """`indices_NK` int32, the sample itself first, then by (distance, index);
    `sq_distances_NK` float32; `max_sq_distance_N` float32, to the farthest of all samples."""

    indices_NK: Ints
    sq_distances_NK: Floats
    max_sq_distance_N: Floats


def nearest_neighbours(
    features_ND: Floats,
    k: int,
    map_blocks: MapBlocks = map_threads,
    num_blocks: int = 1,
    device: str = "cpu",
) -> Neighbours:
    """The `min(k, N)` nearest samples of every sample (itself included), by Euclidean distance.

    Equal distances are ordered by index. `features_ND` is float32, finite, of any scale.
    Memory: O(N k) and a few tiles for each block at work.
    """
    num_samples = len(features_ND)
    k = min(k, num_samples)
    blocks = row_blocks(num_samples, num_blocks)
    pairs = [(rows, columns) for i, rows in enumerate(blocks) for columns in blocks[i:]]
    found = map_blocks("neighbours: products", tile_candidates, pairs, features_ND, k, device)
    by_start: dict[int, list[Candidates]] = {start: [] for start, _ in blocks}
    for candidates_of_pair in found:
        for candidates in candidates_of_pair:
            by_start[candidates.row_start].append(candidates)
    # Refining is far cheaper than the products but single-threaded: cut a lone block up.
    merged = [merge_candidates(by_start[start]) for start, _ in blocks]
    if num_blocks == 1:
        merged = split_candidates(merged[0], torch.get_num_threads())
    parts = map_blocks("neighbours: refine", refine_block, [(c,) for c in merged], features_ND, k)
    return Neighbours(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def tile_candidates(
    features_ND: Floats,
    k: int,
    device: str,
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> tuple[Candidates, ...]:
    """Candidates of `rows` among `columns` and, unless they are the same block, the reverse.

    `rows` and `columns` are (start, stop). Within one block only tiles on or above the
    diagonal are computed.
    """
    num_samples = len(features_ND)
    num_near, num_far = min(k + SLACK, num_samples), min(NUM_FARTHEST, num_samples)
    row_state = _empty_state(rows, num_near, num_far, device)
    same_block = rows == columns
    column_state = row_state if same_block else _empty_state(columns, num_near, num_far, device)
    # TF32 or bf16 products, if the process allows them for training, would void ROUNDING.
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        for i in range(rows[0], rows[1], TILE):
            tile_rows = _to_device(features_ND[i : min(i + TILE, rows[1])], device)
            for j in range(i if same_block else columns[0], columns[1], TILE):
                tile_columns = _to_device(features_ND[j : min(j + TILE, columns[1])], device)
                sq_IJ = torch.addmm(
                    tile_columns.square().sum(1)[None, :], tile_rows, tile_columns.T, alpha=-2
                )
                sq_IJ += tile_rows.square().sum(1)[:, None]
                _update(row_state, i - rows[0], sq_IJ, j)
                if not (same_block and i == j):
                    _update(column_state, j - columns[0], sq_IJ.T.contiguous(), i)
    finally:
        torch.set_float32_matmul_precision(precision)
    if same_block:
        return (_as_candidates(rows[0], row_state),)
    return _as_candidates(rows[0], row_state), _as_candidates(columns[0], column_state)


def merge_candidates(parts: Sequence[Candidates]) -> Candidates:
    """Candidates of one row block from those found among several column blocks."""
    if len(parts) == 1:
        return parts[0]
    num_near, num_far = parts[0].near_RC.shape[1], parts[0].far_RF.shape[1]
    near_sq = np.concatenate([part.near_sq_RC for part in parts], axis=1)
    near = np.concatenate([part.near_RC for part in parts], axis=1)
    far_sq = np.concatenate([part.far_sq_RF for part in parts], axis=1)
    far = np.concatenate([part.far_RF for part in parts], axis=1)
    nearest = np.argsort(near_sq, axis=1)[:, :num_near]
    farthest = np.argsort(-far_sq, axis=1)[:, :num_far]
    return Candidates(
        parts[0].row_start,
        np.take_along_axis(near_sq, nearest, axis=1),
        np.take_along_axis(near, nearest, axis=1),
        np.take_along_axis(far_sq, farthest, axis=1),
        np.take_along_axis(far, farthest, axis=1),
    )


def split_candidates(candidates: Candidates, num_blocks: int) -> list[Candidates]:
    """Cut a row block's candidates into those of `num_blocks` smaller row blocks."""
    row_start, near_sq, near, far_sq, far = candidates
    return [
        Candidates(row_start + a, near_sq[a:b], near[a:b], far_sq[a:b], far[a:b])
        for a, b in row_blocks(len(near), num_blocks)
    ]


def refine_block(features_ND: Floats, k: int, candidates: Candidates) -> Neighbours:
    """Exact neighbours of one row block from its merged candidates (fp64, ties by index)."""
    num_rows = len(candidates.near_RC)
    indices_RK = np.empty((num_rows, k), np.int32)
    sq_RK = np.empty((num_rows, k), np.float64)
    max_sq_R = np.empty(num_rows, np.float64)
    certified_R = np.empty(num_rows, np.bool_)
    _refine_rows(
        features_ND, *candidates, len(features_ND), indices_RK, sq_RK, max_sq_R, certified_R
    )
    doubtful = np.flatnonzero(~certified_R)
    if len(doubtful):
        _search_again(features_ND, candidates.row_start, doubtful, indices_RK, sq_RK, max_sq_R)
    return Neighbours(indices_RK, sq_RK.astype(np.float32), max_sq_R.astype(np.float32))


# ---- Running lists of candidates -------------------------------------------------------

State: TypeAlias = tuple[torch.Tensor, ...]  # as the arrays of Candidates


def _empty_state(rows: tuple[int, int], num_near: int, num_far: int, device: str) -> State:
    num_rows = rows[1] - rows[0]
    return (
        torch.full((num_rows, num_near), torch.inf, device=device),
        torch.full((num_rows, num_near), -1, dtype=torch.int32, device=device),
        torch.full((num_rows, num_far), -torch.inf, device=device),
        torch.full((num_rows, num_far), -1, dtype=torch.int32, device=device),
    )


def _as_candidates(row_start: int, state: State) -> Candidates:
    near_sq, near, far_sq, far = (tensor.cpu().numpy() for tensor in state)
    return Candidates(row_start, near_sq, near, far_sq, far)


def _to_device(features_RD: Floats, device: str) -> torch.Tensor:
    with warnings.catch_warnings():
        # Arrays from Ray's object store are read-only; nothing here writes to them.
        warnings.filterwarnings("ignore", "The given NumPy array is not writ")
        return torch.from_numpy(features_RD).to(device)


def _update(state: State, first_row: int, sq_IJ: torch.Tensor, first_column: int) -> None:
    """Let the tile's distances into the lists of rows `first_row`.. (places in the state)."""
    rows_of_tile = tuple(tensor[first_row : first_row + len(sq_IJ)] for tensor in state)
    if sq_IJ.device.type == "cpu":
        _update_by_scan(rows_of_tile, sq_IJ, first_column)
    else:
        _update_by_topk(rows_of_tile, sq_IJ, first_column)


def _update_by_scan(lists: State, sq_IJ: torch.Tensor, first_column: int) -> None:
    near_sq, near, far_sq, far = (tensor.numpy() for tensor in lists)
    tile = sq_IJ.numpy()
    map_threads(
        "scan",
        _scan_rows,
        row_blocks(len(tile), torch.get_num_threads()),
        *(tile, first_column, near_sq, near, far_sq, far),
    )


def _update_by_topk(lists: State, sq_IJ: torch.Tensor, first_column: int) -> None:
    for values, indices, largest in ((lists[0], lists[1], False), (lists[2], lists[3], True)):
        in_tile = sq_IJ.topk(min(values.shape[1], sq_IJ.shape[1]), largest=largest)
        all_values = torch.cat([values, in_tile.values], 1)
        all_indices = torch.cat([indices, (in_tile.indices + first_column).int()], 1)
        best = all_values.topk(values.shape[1], largest=largest)
        values.copy_(best.values)
        indices.copy_(all_indices.gather(1, best.indices))


@kernel
def _scan_rows(
    sq_IJ: Floats,
    first_column: int,
    near_sq: Floats,
    near: Ints,
    far_sq: Floats,
    far: Ints,
    start: int,
    stop: int,
) -> None:
    """Insert the distances of tile rows start..stop that beat the worst of their row's list."""
    num_columns = sq_IJ.shape[1]
    for i in range(start, stop):
        row = sq_IJ[i]
        for chunk in range(0, num_columns, CHUNK):
            chunk_stop = min(chunk + CHUNK, num_columns)
            near_worst, far_worst = near_sq[i, -1], far_sq[i, -1]
            # Almost every chunk holds nothing of interest. Counting, unlike branching,
            # compiles to vector instructions.
            num_hits = 0
            for j in range(chunk, chunk_stop):
                num_hits += (row[j] < near_worst) | (row[j] > far_worst)
            if num_hits == 0:
                continue
            for j in range(chunk, chunk_stop):
                if row[j] < near_sq[i, -1]:
                    place = near_sq.shape[1] - 1
                    while place > 0 and near_sq[i, place - 1] > row[j]:
                        near_sq[i, place] = near_sq[i, place - 1]
                        near[i, place] = near[i, place - 1]
                        place -= 1
                    near_sq[i, place] = row[j]
                    near[i, place] = first_column + j
                if row[j] > far_sq[i, -1]:
                    place = far_sq.shape[1] - 1
                    while place > 0 and far_sq[i, place - 1] < row[j]:
                        far_sq[i, place] = far_sq[i, place - 1]
                        far[i, place] = far[i, place - 1]
                        place -= 1
                    far_sq[i, place] = row[j]
                    far[i, place] = first_column + j


# ---- Exact distances --------------------------------------------------------------------


@kernel
def squared_distance(features_ND: Floats, i: int, j: int) -> float:
    """Squared Euclidean distance in fp64, bit for bit the same for (i, j) and (j, i)."""
    # Four sums rather than one: they compile to vector instructions, and the order of the
    # additions stays the same everywhere.
    a = b = c = d = 0.0
    dims = features_ND.shape[1]
    for place in range(0, dims - 3, 4):
        a += (np.float64(features_ND[i, place]) - np.float64(features_ND[j, place])) ** 2
        b += (np.float64(features_ND[i, place + 1]) - np.float64(features_ND[j, place + 1])) ** 2
        c += (np.float64(features_ND[i, place + 2]) - np.float64(features_ND[j, place + 2])) ** 2
        d += (np.float64(features_ND[i, place + 3]) - np.float64(features_ND[j, place + 3])) ** 2
    for place in range(dims - dims % 4, dims):
        a += (np.float64(features_ND[i, place]) - np.float64(features_ND[j, place])) ** 2
    return (a + b) + (c + d)


@kernel
def _rounding(features_ND: Floats, i: int, sq: float) -> float:
    """How far an fp32 squared distance near `sq` from sample i may be off.

    The error grows with |f_i|^2 + |f_j|^2, and |f_j|^2 <= 2 |f_i|^2 + 2 sq.
    """
    sq_norm = 0.0
    for d in range(features_ND.shape[1]):
        sq_norm += np.float64(features_ND[i, d]) ** 2
    return ROUNDING * (1.5 * sq_norm + sq)


@kernel
def _insert(sq: Any, indices: Any, num_held: int, value: float, index: int) -> int:
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
    row_start: int,
    near_sq: Floats,
    near: Ints,
    far_sq: Floats,
    far: Ints,
    num_samples: int,
    indices_RK: Ints,
    sq_RK: Any,
    max_sq_R: Any,
    certified_R: Any,
) -> None:
    num_near, num_far = near.shape[1], far.shape[1]
    for r in range(len(near)):
        i = row_start + r
        # A sample is its own first neighbour even among exact copies with lower indices.
        indices_RK[r, 0], sq_RK[r, 0] = i, 0.0
        num_held = 0
        for c in range(num_near):
            j = near[r, c]
            if j != i and indices_RK.shape[1] > 1:
                sq = squared_distance(features_ND, i, j)
                num_held = _insert(sq_RK[r, 1:], indices_RK[r, 1:], num_held, sq, j)
        max_sq_R[r] = 0.0
        for c in range(num_far):
            max_sq_R[r] = max(max_sq_R[r], squared_distance(features_ND, i, far[r, c]))
        # Whatever isn't a candidate is at least (at most) as far as the last candidate, but
        # for the rounding of both.
        nearest_outside = near_sq[r, -1] - _rounding(features_ND, i, near_sq[r, -1])
        farthest_outside = far_sq[r, -1] + _rounding(features_ND, i, far_sq[r, -1])
        certified_R[r] = (
            num_near == num_samples
            or (num_held + 1 == indices_RK.shape[1] and sq_RK[r, -1] < nearest_outside)
        ) and (num_far == num_samples or max_sq_R[r] > farthest_outside)


def _search_again(
    features_ND: Floats,
    row_start: int,
    doubtful: npt.NDArray[np.intp],
    indices_RK: Ints,
    sq_RK: Any,
    max_sq_R: Any,
) -> None:
    """Search whole rows again where more samples than SLACK lie within rounding of the k-th."""
    num_samples = len(features_ND)
    features = _to_device(features_ND, "cpu")
    sq_norms = features.square().sum(1)
    # Copies of a sample are equally far: measure one of them when looking for the farthest.
    first_copy_N = _first_copies(features_ND)
    rows_at_once = max(1, SEARCH_PRODUCTS // num_samples)
    for start in range(0, len(doubtful), rows_at_once):
        some = doubtful[start : start + rows_at_once]
        rows = torch.from_numpy(some + row_start)
        sq_RN = torch.addmm(sq_norms[None, :], features[rows], features.T, alpha=-2)
        sq_RN += sq_norms[rows, None]
        _search_rows(
            features_ND, row_start, some, sq_RN.numpy(), first_copy_N, indices_RK, sq_RK, max_sq_R
        )


def _first_copies(features_ND: Floats) -> npt.NDArray[np.intp]:
    """For every row the lowest index of an identical row."""
    first_seen: dict[bytes, int] = {}
    first = (first_seen.setdefault(row.tobytes(), i) for i, row in enumerate(features_ND))
    return np.fromiter(first, np.intp, len(features_ND))


@kernel
def _search_rows(
    features_ND: Floats,
    row_start: int,
    doubtful: Any,
    sq_RN: Floats,
    first_copy_N: Any,
    indices_RK: Ints,
    sq_RK: Any,
    max_sq_R: Any,
) -> None:
    k = indices_RK.shape[1]
    for place, r in enumerate(doubtful):
        i = row_start + r
        near_bound = sq_RK[r, -1] + _rounding(features_ND, i, sq_RK[r, -1])
        far_bound = max_sq_R[r] - _rounding(features_ND, i, max_sq_R[r])
        num_held = 0
        for j in range(sq_RN.shape[1]):
            approximate = sq_RN[place, j]
            # Indices ascend, so a full list whose last distance is 0 can't change any more.
            is_open = k > 1 and not (num_held == k - 1 and sq_RK[r, -1] == 0.0)
            is_near = is_open and j != i and approximate <= near_bound
            is_far = approximate >= far_bound and first_copy_N[j] == j
            if is_near or is_far:
                sq = squared_distance(features_ND, i, j)
                if is_near:
                    num_held = _insert(sq_RK[r, 1:], indices_RK[r, 1:], num_held, sq, j)
                if is_far:
                    max_sq_R[r] = max(max_sq_R[r], sq)
