"""Features of images in this process, without Ray: of one image, or of a gallery at hand.

On a GPU if there is one; threads decode.

Shapes: B images of a batch, N of all, C channels of a feature.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from daal.available_cpus import available_cpus
from daal.data.images import decode, read
from daal.errors import DataError
from daal.precision import mixed_precision
from daal.trained_model import TrainedModel

BATCH = 64

Features = NDArray[np.float32]
Pixels = NDArray[np.uint8]  # (height, width, 3)


class Extractor:
    """A model, and the size and precision it works with: those of `daal extract`."""

    def __init__(self, model: TrainedModel) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.size = model.config.input
        self.autocast = mixed_precision(self.device, model.config.mixed_precision)

    @property
    def num_features(self) -> int:
        return self.model.network.num_features

    def of_image(self, path: Path, what: str) -> Features:
        """(C,). Raises DataError, calling the image `what`, if it can't be read."""
        if os.path.isfile(path):
            found = self._read(path)
        else:  # a pipe would be waited for
            found = "it is no file" if os.path.exists(path) else "there is no such file"
        if isinstance(found, str):
            raise DataError(f"{what} {path} can't be used: {found}; give another image.")
        return self._features([found])[0]

    def of_images(
        self, paths: list[Path], done: Callable[[int], None] = lambda _: None
    ) -> tuple[list[int], Features, dict[int, str]]:
        """The places of those that can be read, their features (N, C), and why others can't.

        `done` is told how many were looked at. Raises DataError if a feature isn't finite.
        """
        good: list[int] = []
        reasons: dict[int, str] = {}
        parts = [np.empty((0, self.num_features), np.float32)]
        with ThreadPoolExecutor(available_cpus()) as pool:
            for start in range(0, len(paths), BATCH):
                batch = list(pool.map(self._read, paths[start : start + BATCH]))
                pixels = [each for each in batch if not isinstance(each, str)]
                for place, each in enumerate(batch, start):
                    if isinstance(each, str):
                        reasons[place] = each
                    else:
                        good.append(place)
                if pixels:
                    parts.append(self._features(pixels))
                done(start + len(batch))
        return good, np.concatenate(parts), reasons

    def _read(self, path: Path) -> Pixels | str:
        """Decoded to the network's size; or why it can't be."""
        data, reason = read(path)
        return reason or decode(data, self.size.height, self.size.width)

    @torch.inference_mode()
    def _features(self, pixels: list[Pixels]) -> Features:
        images_BHWC = torch.from_numpy(np.stack(pixels)).to(self.device)
        with self.autocast:
            features_BC = self.model(images_BHWC.permute(0, 3, 1, 2))
        if not bool(features_BC.isfinite().all()):
            raise DataError(
                "the network gives features that are not finite, so its weights are damaged; take "
                "another checkpoint."
            )
        return np.asarray(features_BC.float().cpu())
