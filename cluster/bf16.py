"""Products of matrices in bf16, on CPUs with matrix units for them (AMX).

Operands are rounded once, to 8 bits; products of two of them are exact, and sums are fp32. Whether
a search gains by that depends on its features: the closer neighbours lie together, the more
candidates a row needs before its certificate holds. Sampled rows tell how many.
"""

import ctypes
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cluster.arrays import Floats
from cluster.device import to_device
from cluster.refine import FIXED_POINT, SLACK, Search, fp32_distances
from cluster.run import Handle, Runner, run_one

Halves = npt.NDArray[np.uint16]  # bits of bf16 numbers, which NumPy doesn't have
STAGE = "neighbours: bf16"
MIN_DIMS = 256  # below, the products are a small part of the work
NUM_SAMPLED = 64  # rows whose candidates are counted
DOUBTFUL = 0.02  # of the rows may need more candidates than they get; they are searched again
MOST_SLACK = 64  # candidates beyond those asked for; with more, fp32 products take less time
NUM_FARTHEST = 8
ROW_MAJOR, AS_IT_IS, TRANSPOSED = 101, 111, 112  # as CBLAS numbers them


@cache
def bf16_gemm() -> Any:
    """MKL's product of bf16 matrices with fp32 sums; None without it, or without matrix units.

    PyTorch brings MKL along, and has no such product on CPUs itself: its results are bf16.
    Nor would oneDNN do it, as daal keeps oneDNN from AMX (`daal.precision`).
    """
    if not torch.cpu._is_amx_tile_supported():
        return None
    gemm = getattr(ctypes.CDLL(torch._C.__file__), "cblas_gemm_bf16bf16f32", None)
    if gemm is not None:
        sizes, array = [ctypes.c_int] * 3, [ctypes.c_void_p, ctypes.c_int]
        scale = [ctypes.c_float]
        gemm.argtypes = [*[ctypes.c_int] * 3, *sizes, *scale, *array, *array, *scale, *array]
        gemm.restype = None
    return gemm


def multiply(rows_ID: Halves, columns_JD: Halves, out_IJ: Floats) -> None:
    """Products of all rows with all columns."""
    bf16_gemm()(
        ROW_MAJOR, AS_IT_IS, TRANSPOSED,
        len(rows_ID), len(columns_JD), rows_ID.shape[1],
        1.0, rows_ID.ctypes.data, rows_ID.strides[0] // 2,
        columns_JD.ctypes.data, columns_JD.strides[0] // 2,
        0.0, out_IJ.ctypes.data, out_IJ.strides[0] // 4,
    )  # fmt: skip


def in_bf16(
    runner: Runner, features: Handle, search: Search, blocks: list[tuple[int, int]]
) -> tuple[Search, Handle]:
    """The search, and a handle of the operands of its products: `Halves` (N, D) where this takes
    less time than fp32, else the features. Waits for what samples need.

    Only features of length 1: matrix units take numbers below 2^-126 for 0.
    """
    dims = runner.values([features])[0].shape[1]
    if bf16_gemm() is None or search.scale != FIXED_POINT or dims < MIN_DIMS:
        return search, features
    parts = runner.run(STAGE, round_rows, blocks, features, num_results=2)
    off = max(runner.values([off for _, off in parts]))
    rounded = search._replace(operand=off, num_far=NUM_FARTHEST)
    needed = run_one(runner, STAGE, candidates_needed, features, rounded)
    slack = int(np.quantile(runner.values([needed])[0], 1 - DOUBTFUL)) + 3 - search.k
    if slack > MOST_SLACK:
        return search, features
    rounded = rounded._replace(slack=max(slack, SLACK))
    return rounded, run_one(runner, STAGE, join_halves, *(rows for rows, _ in parts))


def round_rows(features_ND: Floats, row_start: int, row_stop: int) -> tuple[Halves, float]:
    """Rows as bf16, and the largest |x - bf16(x)| / |x| of any row x, a little above it."""
    rows = to_device(features_ND[row_start:row_stop], "cpu")
    halves = rows.bfloat16()
    off = torch.linalg.vector_norm(rows - halves, dim=1)
    norms = torch.linalg.vector_norm(rows, dim=1).clamp(min=torch.finfo(rows.dtype).tiny)
    return halves.view(torch.uint16).numpy(), 1.001 * float((off / norms).max())


def candidates_needed(features_ND: Floats, search: Search) -> list[int]:
    """How many candidates sampled rows need: those within the rounding of the k-th nearest."""
    num_samples, dims = features_ND.shape
    rows = np.linspace(0, num_samples - 1, min(NUM_SAMPLED, num_samples)).astype(np.intp)
    sq_RN = fp32_distances(features_ND, rows)
    sq_RN[np.arange(len(rows)), rows] = np.inf
    needed = []
    for row, sq_N in zip(rows, sq_RN, strict=True):
        columns = search.columns(int(row), num_samples)
        sq = np.sort(np.concatenate([sq_N[slice(*column)] for column in columns]))
        kth_sq = sq[: max(1, search.k - search.groups.same)][-1:]
        needed.append(int((sq <= kth_sq + 2.2 * search.rounding(dims)).sum()))
    return needed


def join_halves(*parts: Halves) -> Halves:
    return np.concatenate(parts)
