"""Features and cameras as a caller gives them: checked, and brought to unit length."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from cluster.arrays import Floats, Longs
from cluster.camera_norm import standardised_by_camera
from cluster.copies import distinct_rows
from cluster.device import to_device
from cluster.run import row_blocks
from daal.config import ClusterConfig
from daal.errors import ConfigError, LabelError

MIN_NORM = 1e-6  # below it a feature has no direction
MAX_BAD_SHARE = 0.01
ROWS_AT_ONCE = 1024  # that are normalised: a few MB


@runtime_checkable
class StoredFeatures(Protocol):
    """Features that are read where they are needed, on Ray in a task: (N, D)."""

    def __len__(self) -> int: ...

    def read(self) -> Floats:
        """The features; the caller may write to the array."""


Features: TypeAlias = npt.NDArray[np.floating] | StoredFeatures


def loaded(features: Features) -> npt.NDArray[np.floating]:
    """The array, which is read now if it is stored."""
    return features.read() if isinstance(features, StoredFeatures) else features


def number_matrix(features_ND: npt.ArrayLike) -> npt.NDArray[Any]:
    """The array of what may be a tensor on any device or nested lists.

    Raises LabelError if it isn't (N, D) or holds anything but real numbers.
    """
    if isinstance(features_ND, torch.Tensor):
        tensor = features_ND.detach().cpu()
        features_ND = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    try:
        array = np.asarray(features_ND)
    except ValueError:  # rows of several lengths
        raise LabelError("Features must be (N, D); these rows differ in length.") from None
    if array.ndim != 2:
        flat = " (x.reshape(len(x), -1) makes it so)" if array.ndim > 2 else ""
        raise LabelError(f"Features must be (N, D), not {array.shape}{flat}.")
    if array.dtype.kind not in "fiu":
        raise LabelError(f"Features must be real numbers, not {array.dtype}.")
    return array


def check_given(
    config: ClusterConfig,
    num_samples: int,
    eps: float | None,
    camids_N: npt.NDArray[np.integer] | None,
    source_N: npt.NDArray[np.floating] | None,
) -> None:
    """Raise ConfigError if eps is no distance, or if something that `config` needs is missing or
    of other images."""
    if eps is not None and not 0 <= eps <= 1:
        raise ConfigError(f"eps={eps} is not a distance between 0 and 1.")
    if config.source_weight and (source_N is None or len(source_N) != num_samples):
        raise ConfigError(
            "cluster.source_weight above 0 needs the distance of every image to the source; there "
            "is no source here."
        )
    num_known = 0 if camids_N is None else int((camids_N >= 0).sum())
    for name in ("camera_aware", "camera_norm"):
        if getattr(config, name) and num_known < num_samples:
            raise ConfigError(
                f"cluster.{name}=true needs the camera of every image: there are {num_known} "
                f"camids for {num_samples} features; give a camid from 0 for each, or set "
                f"cluster.{name}=false."
            )
    if camids_N is not None and camids_N.shape != (num_samples,):
        raise ConfigError(
            f"There are camids of shape {camids_N.shape} for {num_samples} features; give one for "
            "each, or none."
        )


def unit_features(
    given: Features,
    camids_N: npt.NDArray[np.integer] | None,
    order_N: npt.NDArray[np.intp] | None,
    num_threads: int,
) -> tuple[Floats, npt.NDArray[np.intp], Longs]:
    """A stage: `normalised_features`, and for each row the first that it is a copy of. With
    `camids_N`, each camera's own mean and spread are taken out before."""
    features_ND = loaded(given)
    if camids_N is not None:
        features_ND = standardised_by_camera(features_ND, camids_N)
    unit_RD, rows = normalised_features(
        features_ND, order_N, num_threads, in_place=features_ND is not given
    )
    return unit_RD, rows, distinct_rows(unit_RD)


def normalised_features(
    features_ND: npt.NDArray[np.floating],
    order_N: npt.NDArray[np.intp] | None = None,
    num_threads: int = 1,
    in_place: bool = False,
) -> tuple[Floats, npt.NDArray[np.intp]]:
    """The usable rows, float32 and of length 1, and which rows these are, in `order_N`.

    With `in_place`, the array given may be written to. Raises LabelError if more than 1 % of the
    rows aren't finite or have no direction, or if fewer than 2 are left.
    """
    features = np.ascontiguousarray(features_ND, np.float32)
    norms = torch.linalg.vector_norm(to_device(features, "cpu"), dim=1).numpy()
    is_good = np.isfinite(norms) & (norms >= MIN_NORM)
    num_good = int(is_good.sum())
    num_bad = len(features) - num_good
    if num_bad > MAX_BAD_SHARE * len(features):
        raise LabelError(
            f"{num_bad} of {len(features)} features are not finite or zero: the network that "
            "made them is broken (diverged training, half precision overflow?); extract them again "
            "with a sound one."
        )
    if num_good < 2:
        raise LabelError(f"Pseudo-labels need at least 2 images, not {num_good}; give more.")
    rows = np.flatnonzero(is_good) if order_N is None else order_N[is_good[order_N]]
    as_they_are = order_N is None and num_bad == 0  # a slice isn't copied first
    is_written_to = in_place and as_they_are
    unit = features if is_written_to else np.empty((num_good, features.shape[1]), np.float32)

    def normalise(block: tuple[int, int]) -> None:
        some = slice(*block) if as_they_are else rows[slice(*block)]
        np.divide(features[some], norms[some, None], out=unit[slice(*block)])

    with ThreadPoolExecutor(num_threads) as pool:  # claiming the memory is most of the work
        list(pool.map(normalise, row_blocks(num_good, -(-num_good // ROWS_AT_ONCE))))
    return unit, rows
