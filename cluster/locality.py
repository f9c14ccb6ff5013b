"""An order of samples in which neighbours follow each other.

Encodings and distances of a sample read the rows of its neighbours. In any other order those are
spread over memory, and at a million samples most of the time would go into waiting for it. The
order changes no result.
"""

import numpy as np

from cluster.arrays import Ints
from cluster.compiled import kernel
from cluster.refine import Neighbours

STEPS = 8  # neighbours that are followed


def locality_order(neighbours: Neighbours) -> Ints:
    """Samples (N,) int32 in the order of a walk from each to its nearest unvisited neighbour."""
    return _walk(neighbours.indices_NK[:, :STEPS])


def renumbered(neighbours: Neighbours, order_N: Ints) -> Neighbours:
    """The same neighbours, where row and number r stand for sample order_N[r]."""
    number_N = np.empty_like(order_N)
    number_N[order_N] = np.arange(len(order_N), dtype=np.int32)
    indices_NK = neighbours.indices_NK[order_N]
    return Neighbours(
        np.where(indices_NK >= 0, number_N[indices_NK], -1).astype(np.int32),
        neighbours.sq_distances_NK[order_N],
        neighbours.max_sq_distance_N[order_N],
    )


@kernel
def _walk(indices_NK: Ints) -> Ints:
    num_samples, num_steps = indices_NK.shape
    order = np.empty(num_samples, np.int32)
    is_placed = np.zeros(num_samples, np.bool_)
    num_placed = 0
    waiting = np.empty(num_samples * num_steps + 1, np.int32)
    for start in range(num_samples):
        waiting[0] = start
        num_waiting = 1
        while num_waiting > 0:
            num_waiting -= 1
            i = waiting[num_waiting]
            if is_placed[i]:
                continue
            is_placed[i] = True
            order[num_placed] = i
            num_placed += 1
            for place in range(num_steps - 1, -1, -1):  # the nearest is the next
                j = indices_NK[i, place]
                if j >= 0 and not is_placed[j]:
                    waiting[num_waiting] = j
                    num_waiting += 1
    return order
