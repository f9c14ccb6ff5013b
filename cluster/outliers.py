"""How outliers, samples of no cluster, are treated."""

import numpy as np
import numpy.typing as npt

from daal.errors import LabelError


def with_singletons(
    labels_N: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The labels (N,), with every outlier (-1) among `rows` a cluster of its own.

    They are numbered in order after the largest label. Ge et al., "Self-paced Contrastive
    Learning", NeurIPS 2020, sec. 3.1, call these un-clustered instances.
    """
    labels_N = labels_N.copy()
    alone = rows[labels_N[rows] < 0]
    labels_N[alone] = labels_N.max(initial=-1) + 1 + np.arange(len(alone))
    return labels_N


def in_all_parts(labels_NP: npt.NDArray[np.int64], eps_setting: str) -> npt.NDArray[np.int64]:
    """Labels of P groupings of the same samples, (N, P), with an outlier of any an outlier of all.

    Clusters that lose all their samples are removed, and the others are renumbered in order, as in
    the code of Fu et al., "Self-similarity Grouping", ICCV 2019. `eps_setting` is the key that
    decides on eps, for the message.

    Raises:
        LabelError: no sample is in a cluster of each grouping.
    """
    kept = (labels_NP >= 0).all(axis=1)
    if not kept.any():
        raise LabelError(
            f"no image is in a cluster of each part of the body; raise {eps_setting}, or set "
            "network.stripes=0."
        )
    found_NP = np.full_like(labels_NP, -1)
    for part in range(labels_NP.shape[1]):
        found_NP[kept, part] = np.unique(labels_NP[kept, part], return_inverse=True)[1]
    return found_NP
