"""Horizontal stripes of the body, each with a feature and pseudo-labels of its own.

Fu et al., "Self-similarity Grouping", ICCV 2019, sec. 3.2: the feature map is cut into an upper and
a lower half; the whole and each of the two are pooled, and clustered apart.

Shapes: B and N images, C channels, H x W pixels of the feature map, S stripes.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pool_stripes(
    pool: Callable[[Tensor], Tensor], features_BCHW: Tensor, num_stripes: int
) -> Tensor:
    """Pooled stripes (B, S, C), from top to bottom; rows that don't divide evenly go to the top."""
    return torch.stack([pool(part) for part in features_BCHW.tensor_split(num_stripes, 2)], dim=1)


def whole_and_stripes(
    features_NX: NDArray[np.float32], num_stripes: int
) -> list[NDArray[np.float32]]:
    """The parts of extracted features (N, C + S C): of the whole body first. Each (N, C).

    Parts are of length 1; without stripes the features are returned as they are.
    """
    if num_stripes == 0:
        return [features_NX]
    parts = np.split(features_NX, 1 + num_stripes, axis=1)
    return [part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in parts]
