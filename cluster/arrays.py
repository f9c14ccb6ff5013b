"""Types and units of the arrays that stages hand on."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int32]
Longs: TypeAlias = npt.NDArray[np.int64]
Labels: TypeAlias = npt.NDArray[np.int64]  # of clusters, from 0; -1 is an outlier

ONE = 1 << 30  # a weight of 1 in the encodings
