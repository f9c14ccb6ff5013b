"""Whether an error says that a GPU has no memory left."""

import re

import torch

# cuBLAS, cuSPARSE and cuDNN name their status; CUDA itself says it in words.
FULL = re.compile(r"out of memory|_ALLOC(ATION)?_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Of torch's allocator, of RAPIDS' (a MemoryError), of CUDA or of one of its libraries."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and FULL.search(str(error)) is not None
