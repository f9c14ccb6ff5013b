"""Camera-aware encodings (CA-Jaccard, Chen et al., CVPR 2024).

Images of one camera look alike, so plain neighbours are mostly of the sample's own camera. Here
each sample has two lists, of its own camera and of the others; reciprocal neighbours are taken
from each alone (CKRNN), and encodings are averaged over the nearest of both (CLQE). The Jaccard
distance of the encodings is then the usual one.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from cluster.blocks import kernel
from cluster.encoding import (
    FULL,
    Flags,
    Reciprocity,
    average_rows,
    exp_tables,
    exponential,
    join_rows,
    normalise_row,
    over_joined_blocks,
    reciprocal_flags,
    stack,
)
from cluster.locality import locality_order, renumbered
from cluster.neighbours import nearest_in_groups
from cluster.products import Floats, Ints, Precision
from cluster.refine import Groups, Neighbours
from cluster.runner import Handle, Runner
from daal.errors import ConfigError

MAX_CAMERAS = 256


class CameraNeighbours(NamedTuple):
    """How many neighbours of the own camera (the sample itself not counted) and of the others
    count as reciprocal (k1), and over how many encodings are averaged (k2, itself counted)."""

    k1_intra: int
    k1_inter: int
    k2_intra: int
    k2_inter: int


CA_JACCARD = CameraNeighbours(5, 20, 2, 4)  # Chen et al. 2024


def encode_by_camera(
    runner: Runner,
    features: Handle,
    scale: float,
    camids_N: npt.NDArray[np.integer],
    by_camera: npt.NDArray[np.integer],
    counts: CameraNeighbours,
    num_blocks: int,
    blocks: list[tuple[int, int]],
    precision: Precision = "fp32",
) -> tuple[Handle, Handle]:
    """Handles of camera-aware encodings, a csr_array of int32 (N, N), and of their rows' order.

    `features`, a handle of float32 (N, D) of length 1, and `camids_N` are ordered by camera, row r
    being sample by_camera[r]. Samples at equal distance are ordered by camera, then by index.
    Raises ConfigError if there are more than 256 cameras: each is a block of its own.
    """
    camera_N = np.unique(camids_N, return_inverse=True)[1].astype(np.int32)
    if camera_N[-1] >= MAX_CAMERAS:
        raise ConfigError(
            f"cluster.camera_aware=true is made for up to {MAX_CAMERAS} cameras, and there are "
            f"{camera_N[-1] + 1} camids; are they camids, or numbers of tracks?"
        )
    # As in the authors' code, k1_inter + 1: their list of other cameras has no place for the
    # sample itself, which the plain list begins with.
    found = [
        nearest_in_groups(
            *(runner, features, scale, Groups(camera_N, same), max(k1 + 1, k2)),
            *(num_blocks, precision),
        )
        for same, k1, k2 in (
            (True, counts.k1_intra, counts.k2_intra),
            (False, counts.k1_inter, counts.k2_inter),
        )
    ]
    # From camera order straight to the order of encodings.
    walk = runner.submit("encoding: order", locality_order, found[1])
    found = [runner.submit("encoding: order", renumbered, lists, walk) for lists in found]
    order = runner.submit("encoding: order", np.take, by_camera, walk)
    joined = partial(over_joined_blocks, runner, blocks)
    flags = []
    for neighbours, k1 in zip(found, (counts.k1_intra, counts.k1_inter), strict=True):
        reciprocity = runner.share(Reciprocity(k1 + 1, 0, False))
        flags.append(joined(join_rows, "reciprocal", reciprocal_flags, neighbours, reciprocity))
    raw = joined(stack, "weights", camera_weights, *found, *flags)
    return joined(stack, "average", average_cameras, raw, *found, counts), order


def camera_weights(
    intra: Neighbours,
    inter: Neighbours,
    intra_flags: Flags,
    inter_flags: Flags,
    row_start: int,
    row_stop: int,
) -> csr_array:
    """softmax(-d2) over the reciprocal neighbours of both lists, rows row_start..row_stop."""
    indptr, indices, data = _camera_weights_kernel(
        *(intra.indices_NK, intra.sq_distances_NK, intra_flags),
        *(inter.indices_NK, inter.sq_distances_NK, inter_flags),
        *(exp_tables(), row_start, row_stop),
    )
    shape = (row_stop - row_start, len(intra.indices_NK))
    return csr_array((data, indices, indptr), shape=shape)


def average_cameras(
    raw: csr_array,
    intra: Neighbours,
    inter: Neighbours,
    counts: CameraNeighbours,
    row_start: int,
    row_stop: int,
) -> csr_array:
    """Mean over the k2_intra nearest of the own camera (itself first) and k2_inter of others."""
    rows = slice(row_start, row_stop)
    averaged_RK = np.hstack(
        [intra.indices_NK[rows, : counts.k2_intra], inter.indices_NK[rows, : counts.k2_inter]]
    )
    return average_rows(raw, averaged_RK)


@kernel
def _camera_weights_kernel(
    intra_NK: Ints,
    intra_sq_NK: Floats,
    intra_flags: Flags,
    inter_NK: Ints,
    inter_sq_NK: Floats,
    inter_flags: Flags,
    tables: Any,
    row_start: int,
    row_stop: int,
) -> Any:
    num_rows = row_stop - row_start
    most = intra_flags.shape[1] + inter_flags.shape[1]
    indptr = np.zeros(num_rows + 1, np.int64)
    out_indices = np.empty(num_rows * most, np.int32)
    out_weights = np.empty(num_rows * most, np.int32)
    members = np.empty(most, np.int32)
    gaussian = np.empty(most, np.int64)
    end = 0
    for i in range(row_start, row_stop):
        start = end
        for place in range(intra_flags.shape[1]):
            if intra_flags[i, place] & FULL:
                members[end - start] = intra_NK[i, place]
                gaussian[end - start] = exponential(np.float64(intra_sq_NK[i, place]), tables)
                end += 1
        for place in range(inter_flags.shape[1]):
            if inter_flags[i, place] & FULL:
                members[end - start] = inter_NK[i, place]
                gaussian[end - start] = exponential(np.float64(inter_sq_NK[i, place]), tables)
                end += 1
        order = np.argsort(members[: end - start])
        out_indices[start:end] = members[: end - start][order]
        normalise_row(gaussian[: end - start][order], end - start, out_weights[start:end])
        indptr[i - row_start + 1] = end
    return indptr, out_indices[:end], out_weights[:end]
