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
from cluster.refine import FIXED_POINT, SLACK, Search
from cluster.run import Handle, Runner

Halves = npt.NDArray[np.uint16]  # bits of bf16 numbers, which NumPy doesn't have
STAGE = "neighbours: bf16"
MIN_DIMS = 256  # below, the products are a small part of the work
NUM_SAMPLED = 64  # rows whose candidates are counted
DOUBTFUL = 0.02  # of the rows may need more candidates than they get; they are searched again
# Candidates beyond those asked for: with more than one for so many samples, or with more than so
# many, fp32 products take less time.
SAMPLES_PER_SLACK, MOST_SLACK = 200, 64
NUM_FARTHEST = 8
ROWS_AT_ONCE = 16  # while they are rounded: what is computed of them stays cached
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


def in_bf16(runner: Runner, features: Handle, search: Search) -> tuple[Search, Handle]:
    """The search, and a handle of the operands of its products: `Halves` (N, D) where this takes
    less time than fp32, else the features. Waits for what samples need.

    Only features of length 1: matrix units take numbers below 2^-126 for 0.
    """
    num_samples, dims = runner.values([features])[0].shape
    if bf16_gemm() is None or search.scale != FIXED_POINT or dims < MIN_DIMS:
        return search, features
    ((halves, in_halves),) = runner.run(STAGE, with_halves, [()], features, search, num_results=2)
    found: Search = runner.values([in_halves])[0]
    if found.slack > min(MOST_SLACK, SLACK + num_samples // SAMPLES_PER_SLACK):
        return search, features
    return found, halves


def with_halves(features_ND: Floats, search: Search) -> tuple[Halves, Search]:
    """The features as bf16, and the search that products of these take."""
    halves_ND, operand = rounded(features_ND)
    search = search._replace(operand=operand, num_far=NUM_FARTHEST)
    needed = candidates_needed(halves_ND, search)
    slack = int(np.quantile(needed, 1 - DOUBTFUL)) + 3 - search.k
    return halves_ND, search._replace(slack=max(slack, SLACK))


def rounded(features_ND: Floats) -> tuple[Halves, float]:
    """The features as bf16, and the largest |x - bf16(x)| / |x| of any row x, a little above it."""
    halves_ND = np.empty(features_ND.shape, np.uint16)
    largest = 0.0
    for start in range(0, len(features_ND), ROWS_AT_ONCE):
        rows = to_device(features_ND[start : start + ROWS_AT_ONCE], "cpu")
        halves = rows.bfloat16()
        halves_ND[start : start + ROWS_AT_ONCE] = halves.view(torch.uint16).numpy()
        off = torch.linalg.vector_norm(rows - halves.float(), dim=1)
        norms = torch.linalg.vector_norm(rows, dim=1).clamp(min=torch.finfo(rows.dtype).tiny)
        largest = max(largest, float((off / norms).max()))
    return halves_ND, 1.001 * largest


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
