"""Candidates for every sample's nearest and farthest samples, by tiles of fast products.

Row blocks meet in pairs. Each tile |x|^2 + |y|^2 - 2 x y of a pair is computed once and looked
at once, for its rows and for its columns: what beats the worst of a running list enters it.
Distances are rounded here, by fp32 or (on GPUs) TF32 or bf16 products; `cluster.neighbours`
measures the candidates exactly and shows that rounding hid nobody.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from cluster.blocks import kernel, row_blocks

Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int32]
Precision: TypeAlias = Literal["fp32", "tf32", "bf16"]

# Candidates kept beyond those asked for, so that the certificate has a gap to look at.
SLACK: dict[Precision, int] = {"fp32": 8, "tf32": 16, "bf16": 32}
NUM_FARTHEST = 4
TILE = 640  # rows and columns: 1.6 MB of products, which stay cached until they are looked at
TILE_ON_GPU = 8192
_precision_lock = threading.Lock()  # torch has one precision for the whole process


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


def no_candidates(rows: tuple[int, int], num_near: int) -> Candidates:
    """Empty lists for the rows (start, stop)."""
    num_rows = rows[1] - rows[0]
    return Candidates(
        rows[0],
        np.full((num_rows, num_near), np.inf, np.float32),
        np.full((num_rows, num_near), -1, np.int32),
        np.full((num_rows, NUM_FARTHEST), -np.inf, np.float32),
        np.full((num_rows, NUM_FARTHEST), -1, np.int32),
    )


def meet_itself(
    features_ND: Floats, precision: Precision, device: str, rows: tuple[int, int], num_near: int
) -> Candidates:
    """A block's candidates from the block itself: the first that it meets."""
    own = no_candidates(rows, num_near)
    if device == "cpu":
        _scan_pair(features_ND, precision, own, own)
    else:
        _select_pair(features_ND, precision, device, own, own)
    return own


def meet(
    features_ND: Floats,
    precision: Precision,
    device: str,
    candidates: Candidates,
    others: Candidates,
) -> tuple[Candidates, Candidates]:
    """Two blocks' candidates, each with those from the other."""
    rows, columns = _own_copy(candidates), _own_copy(others)
    if device == "cpu":
        _scan_pair(features_ND, precision, rows, columns)
    else:
        _select_pair(features_ND, precision, device, rows, columns)
    return rows, columns


def _own_copy(candidates: Candidates) -> Candidates:
    """What came from another task is read-only."""
    row_start, near_sq, near, far_sq, far = candidates
    return Candidates(row_start, near_sq.copy(), near.copy(), far_sq.copy(), far.copy())


def _tiles(candidates: Candidates, size: int) -> list[tuple[int, int]]:
    """(start, stop) within the block, of nearly equal size."""
    num_rows = len(candidates.near_RC)
    return row_blocks(num_rows, -(-num_rows // size))


# ---- CPU: BLAS and a scan ---------------------------------------------------------------


def _scan_pair(
    features_ND: Floats, precision: Precision, rows: Candidates, columns: Candidates
) -> None:
    column_tiles = [
        (tile, _operand(features_ND, columns, tile, precision)) for tile in _tiles(columns, TILE)
    ]
    products = np.empty((TILE, TILE), np.float32)
    for place, row_tile in enumerate(_tiles(rows, TILE)):
        tile_rows, sq_norms_I = _operand(features_ND, rows, row_tile, precision)
        first = place if rows is columns else 0
        for column_tile, (tile_columns, sq_norms_J) in column_tiles[first:]:
            products_IJ = products[: len(tile_rows), : len(tile_columns)]
            np.matmul(tile_rows, tile_columns.T, out=products_IJ)
            _scan_tile(
                *(products_IJ, sq_norms_I, sq_norms_J),
                rows is columns and row_tile == column_tile,
                *(rows.row_start + row_tile[0], columns.row_start + column_tile[0]),
                *_lists(rows, row_tile),
                *_lists(columns, column_tile),
            )


def _operand(
    features_ND: Floats, candidates: Candidates, tile: tuple[int, int], precision: Precision
) -> tuple[Floats, Floats]:
    """A tile's features as the products see them, and the squared norms."""
    start, stop = (candidates.row_start + place for place in tile)
    features = features_ND[start:stop]
    sq_norms = np.einsum("nd,nd->n", features, features)
    return (features if precision == "fp32" else rounded(features, precision)), sq_norms


def rounded(features_ND: Floats, precision: Precision) -> Floats:
    """fp32 values with the mantissa of `precision`, as the GPU's matrix units round them."""
    kept_bits = {"fp32": 23, "tf32": 10, "bf16": 7}[precision]
    dropped = 23 - kept_bits
    bits = features_ND.view(np.uint32)
    half = np.uint32((1 << dropped) >> 1)
    return ((bits + half) >> np.uint32(dropped) << np.uint32(dropped)).view(np.float32)


def _lists(candidates: Candidates, tile: tuple[int, int]) -> Iterator[npt.NDArray[Any]]:
    return (array[tile[0] : tile[1]] for array in candidates[1:])


@kernel
def _enter_near(sq_C: Floats, indices_C: Ints, sq: float, index: int) -> None:
    place = len(sq_C) - 1
    while place > 0 and sq_C[place - 1] > sq:
        sq_C[place] = sq_C[place - 1]
        indices_C[place] = indices_C[place - 1]
        place -= 1
    sq_C[place] = sq
    indices_C[place] = index


@kernel
def _enter_far(sq_F: Floats, indices_F: Ints, sq: float, index: int) -> None:
    place = len(sq_F) - 1
    while place > 0 and sq_F[place - 1] < sq:
        sq_F[place] = sq_F[place - 1]
        indices_F[place] = indices_F[place - 1]
        place -= 1
    sq_F[place] = sq
    indices_F[place] = index


@kernel
def _scan_tile(
    products_IJ: Floats,
    sq_norms_I: Floats,
    sq_norms_J: Floats,
    is_diagonal: bool,
    first_row: int,
    first_column: int,
    near_sq_I: Floats,
    near_I: Ints,
    far_sq_I: Floats,
    far_I: Ints,
    near_sq_J: Floats,
    near_J: Ints,
    far_sq_J: Floats,
    far_J: Ints,
) -> None:
    """Let the tile's distances into the lists of its rows and of its columns."""
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
                # On the diagonal every pair is met once, and nobody meets himself.
                if is_hit_J[j] == 0 or (is_diagonal and j <= i):
                    continue
                sq = sq_norm + sq_norms_J[j] - np.float32(2) * row[j]
                if sq < near_sq_I[i, -1]:
                    _enter_near(near_sq_I[i], near_I[i], sq, first_column + j)
                if sq > far_sq_I[i, -1]:
                    _enter_far(far_sq_I[i], far_I[i], sq, first_column + j)
                if sq < near_sq_J[j, -1]:
                    _enter_near(near_sq_J[j], near_J[j], sq, first_row + i)
                    near_worst_J[j] = near_sq_J[j, -1]
                if sq > far_sq_J[j, -1]:
                    _enter_far(far_sq_J[j], far_J[j], sq, first_row + i)
                    far_worst_J[j] = far_sq_J[j, -1]


# ---- GPU: matrix units and top-k --------------------------------------------------------


def _select_pair(
    features_ND: Floats, precision: Precision, device: str, rows: Candidates, columns: Candidates
) -> None:
    row_tiles = _tiles_on(device, features_ND, rows)
    column_tiles = row_tiles if rows is columns else _tiles_on(device, features_ND, columns)
    for place, row_tile in enumerate(row_tiles):
        for column_tile in column_tiles[place if rows is columns else 0 :]:
            sq_IJ = tile_distances(row_tile.features, column_tile.features, precision)
            if row_tile is column_tile:
                # Nobody is his own neighbour, and nobody is far from himself.
                _select(row_tile, column_tile.first, sq_IJ.fill_diagonal_(torch.inf), False)
                _select(row_tile, column_tile.first, sq_IJ.fill_diagonal_(-torch.inf), True)
                continue
            sq_JI = sq_IJ.T.contiguous()
            for largest in (False, True):
                _select(row_tile, column_tile.first, sq_IJ, largest)
                _select(column_tile, row_tile.first, sq_JI, largest)
    for tile in row_tiles if rows is columns else row_tiles + column_tiles:
        for array, tensor in zip(tile.arrays, tile.lists, strict=True):
            array[...] = tensor.cpu().numpy()


class _TileOnDevice(NamedTuple):
    first: int
    features: torch.Tensor
    lists: list[torch.Tensor]
    arrays: list[npt.NDArray[Any]]  # where the lists go in the end


def _tiles_on(device: str, features_ND: Floats, candidates: Candidates) -> list[_TileOnDevice]:
    tiles = []
    for start, stop in _tiles(candidates, TILE_ON_GPU):
        arrays = [array[start:stop] for array in candidates[1:]]
        first = candidates.row_start + start
        tiles.append(
            _TileOnDevice(
                first,
                to_device(features_ND[first : candidates.row_start + stop], device),
                [torch.tensor(array, device=device) for array in arrays],
                arrays,
            )
        )
    return tiles


def tile_distances(
    tile_rows: torch.Tensor, tile_columns: torch.Tensor, precision: Precision
) -> torch.Tensor:
    """Squared distances of every row to every column by rounded products, float32."""
    sq_norms_I, sq_norms_J = tile_rows.square().sum(1), tile_columns.square().sum(1)
    if not tile_rows.is_cuda:  # CPUs have no matrix units: round the operands alike, for tests
        tile_rows, tile_columns = (
            torch.from_numpy(rounded(tile.numpy(), precision)) for tile in (tile_rows, tile_columns)
        )
    if precision == "bf16" and tile_rows.is_cuda:
        products_IJ = torch.mm(
            tile_rows.bfloat16(), tile_columns.bfloat16().T, out_dtype=torch.float32
        )
    else:
        with matmul_precision(precision):
            products_IJ = tile_rows @ tile_columns.T
    return products_IJ.mul_(-2).add_(sq_norms_I[:, None]).add_(sq_norms_J)


def squared_distances(features_ND: Floats | torch.Tensor, rows: npt.NDArray[np.intp]) -> Floats:
    """From some rows to all samples by fp32 products, (rows, N), where the features are."""
    sq_RN: Floats
    if isinstance(features_ND, torch.Tensor):
        some_on_device = features_ND[torch.from_numpy(rows).to(features_ND.device)]
        sq_RN = tile_distances(some_on_device, features_ND, "fp32").cpu().numpy()
        return sq_RN
    some = features_ND[rows]
    sq_RN = some @ features_ND.T
    sq_RN *= -2
    sq_RN += np.einsum("nd,nd->n", some, some)[:, None]
    sq_RN += np.einsum("nd,nd->n", features_ND, features_ND)
    return sq_RN


def _select(tile: _TileOnDevice, first_column: int, sq_IJ: torch.Tensor, largest: bool) -> None:
    values, indices = tile.lists[2:] if largest else tile.lists[:2]
    in_tile = sq_IJ.topk(min(values.shape[1], sq_IJ.shape[1]), largest=largest)
    in_tile_indices = torch.where(in_tile.values.isinf(), -1, in_tile.indices + first_column)
    all_values = torch.cat([values, in_tile.values], 1)
    all_indices = torch.cat([indices, in_tile_indices.int()], 1)
    best = all_values.topk(values.shape[1], largest=largest)
    values.copy_(best.values)
    indices.copy_(all_indices.gather(1, best.indices))


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """fp32 products as such, or on TF32 units, whatever the process allows for training.

    A product is enqueued under the lock: another thread's task can't change how it is computed.
    """
    with _precision_lock:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def to_device(array: npt.NDArray[Any], device: str) -> torch.Tensor:
    """A tensor of the array, which may be a read-only view of an object store."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ")
        return torch.from_numpy(array).to(device)
