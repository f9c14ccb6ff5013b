"""All workers' rows of a global batch, for losses that compare images with each other.

Worker r of W holds rows r, r + W, r + 2W, ... of a batch (`daal.data.plan.Batch.share`). What is
computed from the whole batch, in its own order, is the same on every worker and with any number
of them.
"""

import torch
from torch import Tensor, distributed


def whole_batch(rows_BX: Tensor) -> Tensor:
    """The rows (B, ...) of this worker and those of all others: (B W, ...), as the batch has them.

    Every worker has as many. A loss computed from the result by each worker has, after DDP's mean
    over workers, the gradient that one worker with all the rows would get: others' rows are
    constants here, and own ones have their gradient times W.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows_BX
    num_workers, rank = distributed.get_world_size(), distributed.get_rank()
    gathered = [torch.empty_like(rows_BX) for _ in range(num_workers)]
    distributed.all_gather(gathered, rows_BX.detach().contiguous())
    if rows_BX.requires_grad:
        gathered[rank] = rows_BX.detach() + num_workers * (rows_BX - rows_BX.detach())
    return torch.stack(gathered, dim=1).flatten(0, 1)
