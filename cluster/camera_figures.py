"""Do clusters follow cameras? Figures of a labelling, most of which need no identities.

Images of one camera share background, light and angle. Features that haven't learnt to see past
these make clusters of one camera each, which look compact and teach the network the cameras.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

Integers = npt.NDArray[np.integer]


@dataclass(frozen=True)
class CameraFigures:
    """Shares from 0 to 1; None where cameras are unknown or one only, or there is no pair.

    `one_camera_share` is of the clusters with two or more images: those of one camera.
    `cross_camera_share` is of the pairs of images in one cluster: those of two cameras. The two
    chances are what random clusters of the same sizes, drawn from all images, would have.
    `cross_camera_precision` is of the pairs in one cluster that are of two cameras: those of one
    person, where identities are known.
    """

    one_camera_share: float | None = None
    one_camera_chance: float | None = None
    cross_camera_share: float | None = None
    cross_camera_chance: float | None = None
    cross_camera_precision: float | None = None


def with_known_camera(camids_N: Integers) -> npt.NDArray[np.bool_] | None:
    """Which images have a known camera (0 or above): (N,). None if they are of fewer than two
    cameras, so that nothing can be said of cameras."""
    known_N = camids_N >= 0
    return known_N if len(np.unique(camids_N[known_N])) > 1 else None


def camera_figures(
    labels_N: Integers, camids_N: Integers, pids_N: Integers | None = None
) -> CameraFigures:
    """Figures of labels (N,), -1 = outlier, by cameras (N,), below 0 = unknown.

    Images of unknown cameras don't count. Those without an identity (pid 0 or below) don't count in
    the precision.
    """
    known_N = with_known_camera(camids_N)
    if known_N is None:
        return CameraFigures()
    inside_N = (labels_N >= 0) & known_N
    clusters_M, cameras_M = labels_N[inside_N], camids_N[inside_N]
    sizes_K = _sizes(clusters_M)
    pairs = _num_pairs(sizes_K)
    if pairs == 0:
        return CameraFigures()
    cameras_of_clusters = np.unique(_joined(clusters_M, cameras_M))
    num_cameras_K = _sizes(cameras_of_clusters // len(np.unique(cameras_M)))
    several_K = sizes_K > 1
    images_C = _sizes(camids_N[known_N])
    precision = None
    if pids_N is not None:
        named_M = pids_N[inside_N] > 0
        clusters_P, cameras_P = clusters_M[named_M], cameras_M[named_M]
        in_cluster = _num_cross_pairs(clusters_P, cameras_P)
        of_one_person = _num_cross_pairs(clusters_P, cameras_P, pids_N[inside_N][named_M])
        precision = of_one_person / in_cluster if in_cluster else None
    return CameraFigures(
        one_camera_share=float((num_cameras_K[several_K] == 1).mean()),
        one_camera_chance=_one_camera_chance(sizes_K[several_K], images_C),
        cross_camera_share=1 - _num_pairs(_sizes(clusters_M, cameras_M)) / pairs,
        cross_camera_chance=1 - _num_pairs(images_C) / _num_pairs(images_C.sum()),
        cross_camera_precision=precision,
    )


def _joined(*keys: Integers) -> Integers:
    """One number for each combination of keys, in their order."""
    joined: Integers = np.zeros(len(keys[0]), np.int64)
    for values in keys:
        distinct, number = np.unique(values, return_inverse=True)
        joined = joined * len(distinct) + number
    return joined


def _sizes(*keys: Integers) -> Integers:
    """Sizes of the groups of images that have all keys in common, in the keys' order."""
    counts: Integers = np.unique(_joined(*keys), return_counts=True)[1]
    return counts


def _num_pairs(sizes: npt.ArrayLike) -> int:
    """Pairs within groups of such sizes."""
    counts = np.asarray(sizes, np.int64)
    return int((counts * (counts - 1) // 2).sum())


def _num_cross_pairs(clusters_M: Integers, cameras_M: Integers, *keys: Integers) -> int:
    """Pairs of images of one cluster, with all keys in common, that are of two cameras."""
    all_pairs = _num_pairs(_sizes(clusters_M, *keys))
    return all_pairs - _num_pairs(_sizes(clusters_M, cameras_M, *keys))


def _one_camera_chance(sizes_K: Integers, images_C: Integers) -> float:
    """Mean over clusters of the chance that so many random images are of one camera: the sum over
    cameras of (images of the camera choose size) / (all images choose size)."""
    sizes, num_clusters = np.unique(sizes_K, return_counts=True)
    log_ways_SC = _log_choose(images_C, sizes[:, None])
    log_chance_SC = log_ways_SC - _log_choose(images_C.sum(), sizes[:, None])
    return float((np.exp(log_chance_SC).sum(1) * num_clusters).sum() / num_clusters.sum())


def _log_choose(n: Integers, k: Integers) -> npt.NDArray[np.float64]:
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(np.maximum(n - k, 0) + 1)
    return np.where(k <= n, ways, -np.inf)
