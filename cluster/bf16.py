"""Products of matrices in bf16, on CPUs with matrix units for them (AMX).

Operands are rounded once, to 8 bits; products of two of them are exact, and sums are fp32.
"""

import ctypes
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cluster.arrays import Floats
from cluster.device import to_device

Halves = npt.NDArray[np.uint16]  # bits of bf16 numbers, which NumPy doesn't have
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
    """Products of all rows with all columns; on a node without matrix units by fp32 numbers."""
    gemm = bf16_gemm()
    if gemm is None:
        np.matmul(_widened(rows_ID), _widened(columns_JD).T, out=out_IJ)
        return
    gemm(
        ROW_MAJOR, AS_IT_IS, TRANSPOSED,
        len(rows_ID), len(columns_JD), rows_ID.shape[1],
        1.0, rows_ID.ctypes.data, rows_ID.strides[0] // 2,
        columns_JD.ctypes.data, columns_JD.strides[0] // 2,
        0.0, out_IJ.ctypes.data, out_IJ.strides[0] // 4,
    )  # fmt: skip


def _widened(halves_ND: Halves) -> Floats:
    """The same numbers as float32: a bf16 number is its upper half."""
    wide_ND: Floats = (halves_ND.astype(np.uint32) << 16).view(np.float32)
    return wide_ND


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
