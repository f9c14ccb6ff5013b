"""The sparse stages as tensor operations, for GPUs, with the same bits as the kernels.

Tensor operations rather than Triton or numba-cuda kernels: the sorts and scans, which are nearly
all of the work, are CUB's anyway, there is nothing to compile, and the same code on CPU tensors
shows without a GPU that every bit is that of the CPU's kernels. The price is memory traffic, as
each operation reads and writes whole tensors.

Two rules keep the bits: sums are of integers, so no order (and no atomic) can matter; floats meet
only single multiplications, additions and divisions in float64, and never a division by a Python
number, which CUDA turns into a product with the reciprocal.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array

from cluster.copies import Longs
from cluster.encoding import (
    EXP_BITS,
    EXP_ONE,
    EXP_STEP,
    FULL,
    HALF,
    ONE,
    Flags,
    Reciprocity,
    exp_tables,
)
from cluster.neighbours import FIXED_POINT, Neighbours
from cluster.products import Floats, Ints, to_device
from cluster.rerank import NUM_BINS, ZERO, InvertedIndex
from cluster.sparse_tensors import (
    MAX_BYTES,
    arrays_of,
    csr,
    pieces,
    ranges,
    row_pieces,
    sums,
    sums_by_key,
)

NOBODY = (1 << 63) - 1  # sorts behind everybody
LOW_HALF = (1 << 32) - 1


# ---- Neighbours -------------------------------------------------------------------------


def refine_rows(
    features_ND: Floats,
    scale: float,
    rounding: float,
    itself_first: bool,
    row_start: int,
    near_sq: Floats,
    near: Ints,
    far_sq: Floats,
    far: Ints,
    indices_RK: Ints,
    sq_RK: Floats,
    max_sq_R: Floats,
    certified_R: npt.NDArray[np.bool_],
    device: str,
) -> None:
    """`cluster.neighbours._refine_rows`, which stops at the first candidate that settles a row.

    Here all are measured. The last one settles what any before it would have.
    """
    (num_rows, num_near), num_others = near.shape, indices_RK.shape[1] - itself_first
    features = to_device(features_ND, device)
    row_R = torch.arange(row_start, row_start + num_rows, device=device)
    candidate_RX = torch.cat([to_device(near, device), to_device(far, device)], 1).long()
    i_P = row_R.repeat_interleave(candidate_RX.shape[1])
    j_P = candidate_RX.clamp(min=0).flatten()
    sq_RX = squared_distances(features, i_P, j_P, scale).view_as(candidate_RX)
    is_there_RX = candidate_RX >= 0

    # Floats from 0 on are ordered as their bits are: (distance, index) is one integer.
    key_RX = sq_RX.view(torch.int32).long() << 32 | candidate_RX
    key_RC = torch.where(is_there_RX, key_RX, NOBODY)[:, :num_near]
    key_RK = key_RC.sort(1).values[:, :num_others]
    is_found_RK = key_RK != NOBODY
    index_RK = torch.where(is_found_RK, key_RK & LOW_HALF, -1).int()
    nearest_sq_RK = torch.where(is_found_RK, key_RK >> 32, 0).int().view(torch.float32)
    farthest_sq_R = torch.where(is_there_RX, sq_RX, 0)[:, num_near:].amax(1)

    norm_R = torch.linalg.vector_norm(features[row_R], dim=1, dtype=torch.float64)
    last_far_sq_R = to_device(far_sq[:, -1], device)
    off_R = _rounding(norm_R, farthest_sq_R, scale, rounding)
    certified = ~is_there_RX[:, -1] | (farthest_sq_R > last_far_sq_R + off_R)
    if num_others > 0:
        last_near_sq_R, kth_sq_R = to_device(near_sq[:, -1], device), nearest_sq_RK[:, -1]
        off_R = _rounding(norm_R, kth_sq_R, scale, rounding)
        certified &= ~is_there_RX[:, num_near - 1] | (kth_sq_R < last_near_sq_R - off_R)
    if itself_first:
        indices_RK[:, 0] = row_R.cpu().numpy()
    held = slice(int(itself_first), int(itself_first) + index_RK.shape[1])
    indices_RK[:, held] = index_RK.cpu().numpy()
    sq_RK[:, held] = nearest_sq_RK.cpu().numpy()
    max_sq_R[:] = farthest_sq_R.cpu().numpy()
    certified_R[:] = certified.cpu().numpy()


def _rounding(
    norm_R: torch.Tensor, sq_R: torch.Tensor, scale: float, rounding: float
) -> torch.Tensor:
    """`cluster.neighbours._rounding`."""
    other_norm_R = (norm_R + sq_R.double().sqrt()).clamp(max=1.1 * FIXED_POINT / scale)
    off_R: torch.Tensor = rounding * (norm_R.square() + other_norm_R.square())
    return off_R


def squared_distances(
    features_ND: torch.Tensor, i_P: torch.Tensor, j_P: torch.Tensor, scale: float
) -> torch.Tensor:
    """`cluster.neighbours.squared_distance` of pairs of rows, (P,) float32."""
    pairs_at_once = max(1, MAX_BYTES // (24 * features_ND.shape[1]))
    sq_P = []
    for i, j in zip(*(torch.split(x_P, pairs_at_once) for x_P in (i_P, j_P)), strict=True):
        difference_PD = features_ND[i].double()
        difference_PD -= features_ND[j]
        difference_PD *= scale
        difference_PD *= difference_PD
        sq_P.append((difference_PD.long().sum(1).double() * scale**-2).float())
    return torch.cat(sq_P)


# ---- Encodings --------------------------------------------------------------------------


def reciprocal_flags(
    neighbours: Neighbours, counts: Reciprocity, row_start: int, row_stop: int, device: str
) -> Flags:
    """`cluster.encoding.reciprocal_flags`."""
    near_NK = to_device(neighbours.indices_NK[:, : counts.num_full], device)
    num_full = near_NK.shape[1]
    flags = []
    for start, stop in row_pieces(row_stop - row_start, 8 * num_full**2):
        row_R = torch.arange(row_start + start, row_start + stop, device=device)
        near_RK = near_NK[row_R]
        is_row_RKK = near_NK[near_RK.clamp(min=0)] == row_R[:, None, None]
        is_full_RK = is_row_RKK.any(2) & (near_RK >= 0)
        is_half_RK = is_row_RKK[:, :, : counts.num_half].any(2) & is_full_RK
        is_half_RK[:, counts.num_half :] = False
        flags.append(FULL * is_full_RK.byte() + HALF * is_half_RK.byte())
    found: Flags = torch.cat(flags).cpu().numpy()
    return found


def weights(
    features_ND: Floats,
    scale: float,
    order_N: Ints,
    neighbours: Neighbours,
    flags_NK: Flags,
    counts: Reciprocity,
    row_start: int,
    row_stop: int,
    device: str,
) -> csr_array:
    """`cluster.encoding.weights`."""
    num_samples, num_full = len(neighbours.indices_NK), flags_NK.shape[1]
    num_rows, num_half = row_stop - row_start, min(counts.num_half, num_full)
    features, order = to_device(features_ND, device), to_device(order_N, device).long()
    near_NK = to_device(neighbours.indices_NK[:, :num_full], device)
    flags = to_device(flags_NK, device)
    half_NH = torch.where((flags & HALF) > 0, near_NK, -1)[:, :num_half]
    sq_RK = to_device(neighbours.sq_distances_NK[row_start:row_stop, :num_full], device)
    rows, members, sqs = [], [], []
    for start, stop in row_pieces(num_rows, 10 * num_full**2 * (num_half + 1)):
        here = slice(row_start + start, row_start + stop)
        near_RK = near_NK[here]
        member_RM = _expanded(torch.where((flags[here] & FULL) > 0, near_RK, -1), half_NH)
        row_M, place_M = (member_RM >= 0).nonzero(as_tuple=True)
        member_M = member_RM[row_M, place_M]
        is_it_MK = near_RK[row_M] == member_M[:, None]
        # A sum of zeros and, if the member is among the nearest, its distance.
        sq_M = torch.where(is_it_MK, sq_RK[start:stop][row_M], 0).sum(1)
        row_M += start
        others = (~is_it_MK.any(1)).nonzero().squeeze(1)
        i_P, j_P = order[row_M[others] + row_start], order[member_M[others]]
        sq_M[others] = squared_distances(features, i_P, j_P, scale)
        rows.append(row_M)
        members.append(member_M)
        sqs.append(sq_M)
    row_M, x_M = torch.cat(rows), torch.cat(sqs).double()
    if counts.by_farthest:
        largest_R = to_device(neighbours.max_sq_distance_N[row_start:row_stop], device).double()
        x_M /= torch.where(largest_R == 0, 1, largest_R)[row_M]
    return _gaussian_rows(row_M, torch.cat(members), x_M, (num_rows, num_samples))


def _expanded(core_RK: torch.Tensor, half_NH: torch.Tensor) -> torch.Tensor:
    """R* of each row (rows, M), in order, from its R and everybody's half sets; -1 for nobody."""
    is_core_RK1 = (core_RK >= 0)[:, :, None]
    half_RKH = torch.where(is_core_RK1, half_NH[core_RK.clamp(min=0)], -1)
    is_half_RKH = half_RKH >= 0
    is_shared_RKH = (half_RKH[..., None] == core_RK[:, None, None]).any(3) & is_half_RKH
    is_joined_RK = 3 * is_shared_RKH.sum(2) > 2 * is_half_RKH.sum(2)
    joined_RKH = torch.where(is_joined_RK[:, :, None], half_RKH, -1)
    member_RM = torch.cat([core_RK, joined_RKH.flatten(1)], 1).sort(1).values
    is_again_RM = member_RM[:, 1:] == member_RM[:, :-1]
    member_RM[:, 1:].masked_fill_(is_again_RM, -1)
    return member_RM


def camera_weights(
    intra: Neighbours,
    inter: Neighbours,
    intra_flags: Flags,
    inter_flags: Flags,
    row_start: int,
    row_stop: int,
    device: str,
) -> csr_array:
    """`cluster.camera_aware.camera_weights`."""
    members, sqs = [], []
    for neighbours, flags_NK in ((intra, intra_flags), (inter, inter_flags)):
        here = (slice(row_start, row_stop), slice(flags_NK.shape[1]))
        flags = to_device(flags_NK[here], device)
        near_RK = to_device(neighbours.indices_NK[here], device)
        members.append(torch.where((flags & FULL) > 0, near_RK, -1))
        sqs.append(to_device(neighbours.sq_distances_NK[here], device))
    member_RM, order_RM = torch.cat(members, 1).sort(1)
    row_M, place_M = (member_RM >= 0).nonzero(as_tuple=True)
    x_M = torch.cat(sqs, 1)[row_M, order_RM[row_M, place_M]].double()
    shape = (row_stop - row_start, len(intra.indices_NK))
    return _gaussian_rows(row_M, member_RM[row_M, place_M], x_M, shape)


def _gaussian_rows(
    row_M: torch.Tensor, column_M: torch.Tensor, x_M: torch.Tensor, shape: tuple[int, int]
) -> csr_array:
    """exp(-x) at the places given row by row, each row scaled to sum `ONE`."""
    fixed = (x_M * EXP_STEP).clamp(max=8 * EXP_STEP - 1).long()
    mask = (1 << EXP_BITS) - 1
    coarse, middle, fine = to_device(exp_tables(), x_M.device.type)
    exponential = coarse[fixed >> (2 * EXP_BITS)] * middle[(fixed >> EXP_BITS) & mask]
    gaussian_M = (exponential * fine[fixed & mask] * EXP_ONE + 0.5).long()
    total_M = sums(row_M, gaussian_M, shape[0])[row_M]
    return csr(row_M, column_M, (gaussian_M * ONE + total_M // 2) // total_M, shape)


def average_rows(raw: csr_array, averaged_RK: Ints, device: str) -> csr_array:
    """`cluster.encoding.average_rows`."""
    (num_rows, most_averaged), num_samples = averaged_RK.shape, raw.shape[1]
    indptr, columns, weights = arrays_of(raw, device)
    averaged = to_device(averaged_RK, device).long()
    is_there_RK = averaged >= 0
    num_averaged_R = is_there_RK.sum(1)
    starts_RK = indptr[averaged.clamp(min=0)]
    counts_RK = torch.where(is_there_RK, indptr[averaged.clamp(min=0) + 1] - starts_RK, 0)
    rows, places, averages = [], [], []
    for start, stop in pieces(counts_RK.sum(1), device):
        list_T, entry_T = ranges(starts_RK[start:stop].flatten(), counts_RK[start:stop].flatten())
        row_T = list_T // most_averaged
        key_U, sum_U = sums_by_key(row_T * num_samples + columns[entry_T], weights[entry_T])
        row_U = key_U // num_samples
        num_U = num_averaged_R[start:stop][row_U]
        rows.append(row_U + start)
        places.append(key_U % num_samples)
        averages.append((2 * sum_U + num_U) // (2 * num_U))
    return csr(torch.cat(rows), torch.cat(places), torch.cat(averages), (num_rows, num_samples))


# ---- Distances --------------------------------------------------------------------------


def inverted_index(encodings: csr_array, device: str) -> InvertedIndex:
    """`cluster.rerank.inverted_index`."""
    indptr, columns, weights = arrays_of(encodings, device)
    row_E = torch.repeat_interleave(indptr.diff())
    column_E, order_E = columns.int().sort(stable=True)
    every_column = torch.arange(len(indptr), dtype=torch.int32, device=device)
    return InvertedIndex(
        torch.searchsorted(column_E, every_column).cpu().numpy(),
        torch.stack([row_E[order_E].int(), weights[order_E]], 1).cpu().numpy(),
        sums(row_E, weights, len(indptr) - 1).cpu().numpy(),
    )


def pairs_below(
    encodings: csr_array,
    index: InvertedIndex,
    max_distance: float,
    row_start: int,
    row_stop: int,
    device: str,
) -> csr_array:
    """`cluster.rerank.pairs_below`."""
    rows, columns, distances = [], [], []
    row_R = torch.arange(row_start, row_stop, device=device)
    for row_U, column_U, distance_U in _distances(encodings, index, row_R, device):
        # In float64, as a number next to a float32 tensor would be rounded to float32.
        is_below_U = distance_U.double() < max_distance
        rows.append(row_U[is_below_U])
        columns.append(column_U[is_below_U])
        distances.append(distance_U[is_below_U])
    shape = (row_stop - row_start, encodings.shape[0])
    return csr(torch.cat(rows), torch.cat(columns), torch.cat(distances), shape)


def histogram_block(
    encodings: csr_array,
    index: InvertedIndex,
    every: int,
    row_start: int,
    row_stop: int,
    device: str,
) -> Longs:
    """`cluster.rerank.histogram_block`."""
    counts = torch.zeros(1 + NUM_BINS, dtype=torch.int64, device=device)
    row_R = torch.arange(row_start, row_stop, device=device)[(-row_start) % every :: every]
    for _, _, distance_U in _distances(encodings, index, row_R, device):
        distance_U = distance_U[distance_U < 1].double()
        bin_U = torch.where(distance_U <= ZERO, 0, 1 + (distance_U * NUM_BINS).long())
        counts += torch.bincount(bin_U, minlength=1 + NUM_BINS)
    found: Longs = counts.cpu().numpy()
    return found


def _distances(
    encodings: csr_array, index: InvertedIndex, row_R: torch.Tensor, device: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Of some of the rows at a time: (place in `row_R`, j, distance float32) of all pairs with
    later samples j that are met in a common column, in order."""
    indptr, columns, weights = arrays_of(encodings, device)
    starts, entries_E2, sums_N = (to_device(array, device) for array in index)
    sums_N = sums_N.long()
    num_samples = len(starts) - 1
    # In the order of the index: by column, then by sample.
    key_E = torch.repeat_interleave(starts.diff()) * num_samples + entries_E2[:, 0]
    starts_R, counts_R = indptr[row_R], indptr[row_R + 1] - indptr[row_R]
    place_P, entry_P = ranges(starts_R, counts_R)
    column_P = columns[entry_P]
    later_P = torch.searchsorted(key_E, column_P * num_samples + row_R[place_P], right=True)
    num_later_P = starts[column_P + 1] - later_P
    stops_R = counts_R.cumsum(0)
    for start, stop in pieces(sums(place_P, num_later_P, len(row_R)), device):
        some = slice(int(stops_R[start] - counts_R[start]), int(stops_R[stop - 1]))
        entry_T, other_T = ranges(later_P[some], num_later_P[some])
        j_T, weight_T = entries_E2[other_T].unbind(1)
        overlap_T = torch.minimum(weight_T, weights[entry_P[some]][entry_T])
        key_U, overlap_U = sums_by_key(place_P[some][entry_T] * num_samples + j_T, overlap_T)
        place_U, j_U = key_U // num_samples, key_U % num_samples
        both_sums_U = sums_N[row_R[place_U]] + sums_N[j_U]
        distance_U = (both_sums_U - 2 * overlap_U).double() / (both_sums_U - overlap_U).double()
        yield place_U, j_U, distance_U.float()
