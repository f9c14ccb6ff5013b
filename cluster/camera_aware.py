"""Camera-aware encodings (CA-Jaccard, Chen et al., CVPR 2024).

Images of one camera look alike, so plain neighbours are mostly of the sample's own camera. Here
each sample has two lists, of its own camera and of the others; reciprocal neighbours are taken
from each alone (CKRNN), and encodings are averaged over the nearest of both (CLQE). The Jaccard
distance of the encodings is then the usual one.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from cluster.arrays import Floats, Ints
from cluster.compiled import kernel
from cluster.encoding import (
    FULL,
    Flags,
    Reciprocity,
    average_rows,
    exp_tables,
    exponential,
    normalise_row,
    reciprocal_flags,
    run_joined,
)
from cluster.locality import locality_order, renumbered
from cluster.neighbours import nearest_neighbours
from cluster.refine import Groups, Neighbours, Search
from cluster.run import Handle, Runner, Stage, run_one
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
    search: Search,
    camids_N: npt.NDArray[np.integer],
    counts: CameraNeighbours,
    blocks: list[tuple[int, int]],
) -> tuple[Handle, Handle]:
    """Handles of camera-aware encodings, a csr_array of int32 (N, N), and of their rows' order.

    `features`, a handle of float32 (N, D) of length 1, and `camids_N` are ordered by camera.
    Samples at equal distance are ordered by camera, then by index. `search` says how to search;
    its k doesn't count.
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
    k_intra = max(counts.k1_intra + 1, counts.k2_intra)
    k_inter = max(counts.k1_inter + 1, counts.k2_inter)
    own = search._replace(k=k_intra, groups=Groups(camera_N, True))
    others = search._replace(k=k_inter, groups=Groups(camera_N, False))
    intra = nearest_neighbours(runner, features, own, blocks)
    inter = nearest_neighbours(runner, features, others, blocks)
    order = run_one(runner, "encoding: order", locality_order, inter)
    intra = run_one(runner, "encoding: order", renumbered, intra, order)
    inter = run_one(runner, "encoding: order", renumbered, inter, order)

    def of_all_rows(stage: str, function: Stage, *shared: Any) -> Handle:
        return run_joined(runner, f"encoding: {stage}", function, blocks, *shared)

    intra_flags, inter_flags = (
        of_all_rows("reciprocal", reciprocal_flags, neighbours, Reciprocity(k1 + 1, 0, False))
        for neighbours, k1 in ((intra, counts.k1_intra), (inter, counts.k1_inter))
    )
    raw = of_all_rows("weights", camera_weights, intra, inter, intra_flags, inter_flags)
    return of_all_rows("average", average_cameras, raw, intra, inter, counts), order


def camera_weights(
    intra: Neighbours,
    inter: Neighbours,
    intra_flags: Flags,
    inter_flags: Flags,
    row_start: int,
    row_stop: int,
) -> csr_array:
    """softmax(-d2) over the reciprocal neighbours of both lists, rows row_start..row_stop."""
    rows, num_intra = slice(row_start, row_stop), intra_flags.shape[1]
    num_inter = inter_flags.shape[1]

    def both(of_intra_NK: Any, of_inter_NK: Any) -> Any:
        return np.hstack([of_intra_NK[rows, :num_intra], of_inter_NK[rows, :num_inter]])

    flags_RK = both(intra_flags, inter_flags)
    indices_RK = both(intra.indices_NK, inter.indices_NK)
    sq_RK = both(intra.sq_distances_NK, inter.sq_distances_NK)
    indptr, indices, data = _softmax_kernel(flags_RK, indices_RK, sq_RK, exp_tables())
    return csr_array((data, indices, indptr), shape=(len(flags_RK), len(intra.indices_NK)))


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
def _softmax_kernel(flags_RK: Flags, indices_RK: Ints, sq_RK: Floats, tables: Any) -> Any:
    num_rows, most = flags_RK.shape
    indptr = np.zeros(num_rows + 1, np.int64)
    out_indices = np.empty(num_rows * most, np.int32)
    out_weights = np.empty(num_rows * most, np.int32)
    gaussian = np.empty(most, np.int64)
    end = 0
    for r in range(num_rows):
        start = end
        places = np.flatnonzero(flags_RK[r] & FULL)
        for place in places[np.argsort(indices_RK[r][places])]:
            out_indices[end] = indices_RK[r, place]
            gaussian[end - start] = exponential(np.float64(sq_RK[r, place]), tables)
            end += 1
        normalise_row(gaussian, end - start, out_weights[start:end])
        indptr[r + 1] = end
    return indptr, out_indices[:end], out_weights[:end]
