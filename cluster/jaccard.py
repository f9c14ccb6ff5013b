"""k-reciprocal Jaccard distance (Zhong et al. 2017) of all samples, sparse and exact, in one call.

It is for users of this package. A run takes the same steps in `cluster.estimate`; the formula is in
`cluster.pairs`.
"""

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from cluster.encoding import Dialect, Reciprocity, encode
from cluster.neighbours import nearest_neighbours
from cluster.pairs import Pairs, symmetric
from cluster.refine import Search, fixed_point_scale
from cluster.run import Runner, blocks_for, on_threads, row_blocks
from daal.errors import LabelError


@on_threads
def jaccard_distance(
    features_ND: npt.NDArray[np.floating],
    k1: int = 20,
    k2: int = 6,
    max_distance: float = 1.0,
    *,
    dialect: Dialect = "zhong",
    runner: Runner | None = None,
    num_blocks: int | None = None,
) -> csr_array:
    """Jaccard distance of k-reciprocal encodings between all samples (Zhong et al. 2017).

    `features_ND`: neighbours are by Euclidean distance. `dialect`: see `Reciprocity`; "faiss" is
    meant for features of length 1.
    Returns a symmetric float32 (N, N) with sorted indices, holding the distances below
    `max_distance` only; with 1.0, absent means exactly 1. Zeros are explicit entries, the
    diagonal too, so scikit-learn's DBSCAN takes it as it is. Don't add such matrices or call
    `eliminate_zeros`: SciPy would drop the zeros, and copies would stop being neighbours.
    Raises LabelError if a feature isn't finite, or the longest isn't between 1e-15 and 1e15.
    """
    assert runner is not None
    features_ND = np.ascontiguousarray(features_ND, np.float32)
    longest = float(np.linalg.norm(features_ND, axis=1).max(initial=0))
    if not (1e-15 <= longest <= 1e15 or longest == 0):
        raise LabelError(
            f"The longest feature has length {longest:g}; features must be finite, and of a "
            "scale that fp32 products can hold: divide them by their lengths."
        )
    num_samples = len(features_ND)
    blocks = row_blocks(num_samples, num_blocks) if num_blocks else blocks_for(runner, num_samples)
    reciprocity = Reciprocity.of(k1, dialect)
    search = Search(max(reciprocity.num_full, k2), fixed_point_scale(features_ND))
    features = runner.share(features_ND)
    neighbours = nearest_neighbours(runner, features, search, blocks)
    encodings, order = encode(runner, features, search.scale, neighbours, reciprocity, k2, blocks)
    order_N = runner.values([order])[0]
    pairs = Pairs.of(runner, encodings, order_N, blocks)
    number_N = np.argsort(order_N)
    distance = symmetric(pairs.jaccard_below(max_distance))[number_N][:, number_N]
    distance.sort_indices()
    return distance
