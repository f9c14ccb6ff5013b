"""Features with their camera's own mean and spread taken out.

Clusters follow cameras where a network has not learnt to see past them. Standardising each channel
over each camera's images is what BatchNorm does for a domain, done for cameras: the idea of Zhuang
et al., "Rethinking the Distribution Gap of Person Re-identification with Camera-Based Batch
Normalization", ECCV 2020, here for features that are only clustered.
"""

import numpy as np
import numpy.typing as npt

MIN_IMAGES = 16  # of a camera; with fewer, all images' mean and spread are used
SMALLEST = 1e-6  # spread of a channel of unit features


def standardised_by_camera(
    features_ND: npt.NDArray[np.floating], camids_N: npt.NDArray[np.integer]
) -> npt.NDArray[np.float32]:
    """(x - mean) / standard deviation over the images of the same camera: float32 (N, D).

    Images of unknown cameras (below 0) have those of all images.
    x are the features at length 1. Rows that aren't finite, or zero, stay as they are and count
    nowhere.
    """
    features = np.array(features_ND, np.float32)
    norms = np.linalg.norm(features, axis=1)
    usable = np.isfinite(norms) & (norms > 0)
    features[usable] /= norms[usable, None]
    if not usable.any():
        return features
    everything = _mean_and_spread(features[usable])
    for camid in np.unique(camids_N[usable]):
        rows = np.flatnonzero(usable & (camids_N == camid))
        some = features[rows]
        is_camera = camid >= 0 and len(rows) >= MIN_IMAGES
        mean, spread = _mean_and_spread(some) if is_camera else everything
        features[rows] = (some - mean) / spread
    return features


def _mean_and_spread(
    features_ND: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    mean_D = features_ND.mean(0, dtype=np.float64)
    spread_D = features_ND.std(0, dtype=np.float64, mean=mean_D[None])
    return mean_D.astype(np.float32), np.maximum(spread_D, SMALLEST).astype(np.float32)
