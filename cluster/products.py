"""Candidates for every sample's nearest and farthest samples, by tiles of fast products, on CPUs.

Row blocks meet in pairs. Each tile |x|^2 + |y|^2 - 2 x y of a pair is computed once and looked
at once, for its rows and for its columns: what beats the worst of a running list enters it.
Distances are rounded here; `cluster.refine` measures the candidates exactly and shows that
rounding hid no neighbour.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cluster.arrays import Floats, Ints
from cluster.bf16 import multiply
from cluster.compiled import kernel
from cluster.refine import Candidates, Search
from cluster.run import row_blocks

Operands: TypeAlias = npt.NDArray[Any]  # features (N, D), float32 or `cluster.bf16.Halves`
TILE = 640  # rows and columns: 1.6 MB of products, which stay cached until they are looked at


def no_candidates(rows: tuple[int, int], search: Search, num_samples: int) -> Candidates:
    """Empty lists for the rows (start, stop)."""
    num_rows, num_near, num_far = rows[1] - rows[0], search.num_near(num_samples), search.num_far
    return Candidates(
        rows[0],
        np.full((num_rows, num_near), np.inf, np.float32),
        np.full((num_rows, num_near), -1, np.int32),
        np.full((num_rows, num_far), -np.inf, np.float32),
        np.full((num_rows, num_far), -1, np.int32),
    )


def squared_norms(features_ND: Floats) -> Floats:
    """|x|^2 of every row, (N,)."""
    sq_norms_N: Floats = np.einsum("nd,nd->n", features_ND, features_ND)
    return sq_norms_N


def meet_itself(
    operands_ND: Operands, sq_norms_N: Floats, search: Search, rows: tuple[int, int]
) -> Candidates:
    """A block's candidates from the block itself."""
    own = no_candidates(rows, search, len(operands_ND))
    _scan_pair(operands_ND, sq_norms_N, own, own)
    return own


def meet(
    operands_ND: Operands, sq_norms_N: Floats, candidates: Candidates, others: Candidates
) -> tuple[Candidates, Candidates]:
    """Two blocks' candidates, each with those from the other."""
    rows, columns = _own_copy(candidates), _own_copy(others)
    _scan_pair(operands_ND, sq_norms_N, rows, columns)
    return rows, columns


def _own_copy(candidates: Candidates) -> Candidates:
    """What came from another task is read-only."""
    row_start, near_sq, near, far_sq, far = candidates
    return Candidates(row_start, near_sq.copy(), near.copy(), far_sq.copy(), far.copy())


def _tiles(candidates: Candidates) -> list[Candidates]:
    """Views of nearly equal size."""
    num_rows = len(candidates.near_RC)
    row_start, near_sq, near, far_sq, far = candidates
    tiles = []
    for start, stop in row_blocks(num_rows, -(-num_rows // TILE)):
        some = slice(start, stop)
        tile = Candidates(row_start + start, near_sq[some], near[some], far_sq[some], far[some])
        tiles.append(tile)
    return tiles


def _scan_pair(
    operands_ND: Operands, sq_norms_N: Floats, rows: Candidates, columns: Candidates
) -> None:
    products = np.empty((TILE, TILE), np.float32)
    column_tiles = _tiles(columns)
    for place, row_tile in enumerate(_tiles(rows)):
        rows_ID, sq_norms_I = operands_ND[row_tile.samples], sq_norms_N[row_tile.samples]
        for column_tile in column_tiles[place if rows is columns else 0 :]:
            columns_JD = operands_ND[column_tile.samples]
            products_IJ = products[: len(rows_ID), : len(columns_JD)]
            if operands_ND.dtype == np.float32:
                np.matmul(rows_ID, columns_JD.T, out=products_IJ)
            else:
                multiply(rows_ID, columns_JD, products_IJ)
            sq_norms_J = sq_norms_N[column_tile.samples]
            is_diagonal = row_tile.samples == column_tile.samples
            _scan_tile(products_IJ, sq_norms_I, sq_norms_J, is_diagonal, row_tile, column_tile)


@kernel
def _enter(sq_C: Floats, indices_C: Ints, sq: float, index: int, is_near: bool) -> None:
    """Into a list of the nearest, or of the farthest, in place of its worst."""
    place = len(sq_C) - 1
    while place > 0 and (sq_C[place - 1] > sq if is_near else sq_C[place - 1] < sq):
        sq_C[place] = sq_C[place - 1]
        indices_C[place] = indices_C[place - 1]
        place -= 1
    sq_C[place] = sq
    indices_C[place] = index


@kernel
def _scan_tile(
    products_IJ: Floats,
    sq_norms_I: Floats,
    sq_norms_J: Floats,
    is_diagonal: bool,
    rows: Candidates,
    columns: Candidates,
) -> None:
    """Let the tile's distances into the lists of its rows and of its columns."""
    first_row, near_sq_I, near_I, far_sq_I, far_I = rows
    first_column, near_sq_J, near_J, far_sq_J, far_J = columns
    num_columns = products_IJ.shape[1]
    near_worst_J = near_sq_J[:, -1].copy()
    far_worst_J = far_sq_J[:, -1].copy()
    is_hit_J = np.zeros(-(-num_columns // 8) * 8, np.uint8)
    hits_of_eight = is_hit_J.view(np.uint64)
    for i in range(products_IJ.shape[0]):
        row = products_IJ[i]
        sq_norm = sq_norms_I[i]
        near_worst, far_worst = near_sq_I[i, -1], far_sq_I[i, -1]
        # Almost no distance enters a list. Flags without branches compile to vector
        # instructions; they are then looked at eight at a time.
        for j in range(num_columns):
            sq = sq_norm + sq_norms_J[j] - np.float32(2) * row[j]
            is_hit_J[j] = (
                (sq < near_worst)
                | (sq < near_worst_J[j])
                | (sq > far_worst)
                | (sq > far_worst_J[j])
            )
        for eight in range(len(hits_of_eight)):
            if hits_of_eight[eight] == 0:
                continue
            for j in range(8 * eight, 8 * eight + 8):
                # On the diagonal every pair is met once, and no sample meets itself.
                if is_hit_J[j] == 0 or (is_diagonal and j <= i):
                    continue
                sq = sq_norm + sq_norms_J[j] - np.float32(2) * row[j]
                if sq < near_sq_I[i, -1]:
                    _enter(near_sq_I[i], near_I[i], sq, first_column + j, True)
                if sq > far_sq_I[i, -1]:
                    _enter(far_sq_I[i], far_I[i], sq, first_column + j, False)
                if sq < near_sq_J[j, -1]:
                    _enter(near_sq_J[j], near_J[j], sq, first_row + i, True)
                    near_worst_J[j] = near_sq_J[j, -1]
                if sq > far_sq_J[j, -1]:
                    _enter(far_sq_J[j], far_J[j], sq, first_row + i, False)
                    far_worst_J[j] = far_sq_J[j, -1]
