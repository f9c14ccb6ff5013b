"""What becomes of samples that no cluster took."""

import numpy as np
import numpy.typing as npt


def with_singletons(
    labels_N: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The labels (N,), with every outlier (-1) among `rows` a cluster of its own.

    They are numbered in order behind the largest label. Ge et al., "Self-paced Contrastive
    Learning", NeurIPS 2020, sec. 3.1, call these un-clustered instances.
    """
    labels_N = labels_N.copy()
    alone = rows[labels_N[rows] < 0]
    labels_N[alone] = labels_N.max(initial=-1) + 1 + np.arange(len(alone))
    return labels_N
