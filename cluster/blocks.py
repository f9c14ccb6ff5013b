"""Row blocks, and the one seam through which a stage is spread over threads or Ray tasks.

Every stage of the estimate is a function of a row block. Whoever runs it supplies a
`MapBlocks`; the stages' code doesn't change, and neither do their results.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Protocol, TypeVar, cast

import numba
import torch

Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])


class MapBlocks(Protocol):
    """Runs `function(*shared, *block)` for every block and returns the results in order.

    `stage` names the work for whoever watches it; `shared` is the same for all blocks, so
    that it can be sent once.
    """

    def __call__(
        self,
        stage: str,
        function: Callable[..., Result],
        blocks: Sequence[tuple[Any, ...]],
        *shared: Any,
    ) -> list[Result]: ...


def map_threads(
    stage: str,
    function: Callable[..., Result],
    blocks: Sequence[tuple[Any, ...]],
    *shared: Any,
) -> list[Result]:
    """`MapBlocks` on this machine: as many threads as torch uses (the kernels free the GIL)."""
    if len(blocks) == 1:
        return [function(*shared, *blocks[0])]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(lambda block: function(*shared, *block), blocks))


def row_blocks(num_rows: int, num_blocks: int) -> list[tuple[int, int]]:
    """Cut `num_rows` into at most `num_blocks` (start, stop) of nearly equal size, none empty."""
    num_blocks = max(1, min(num_blocks, num_rows))
    edges = [num_rows * block // num_blocks for block in range(num_blocks + 1)]
    return list(pairwise(edges))


def kernel(function: Function) -> Function:
    """Compile a loop with numba: cached on disk (cold compiles take seconds), GIL released."""
    return cast(Function, numba.njit(cache=True, nogil=True)(function))
