"""What a GPU says when its memory runs out."""

import torch

SIGNS = ("out of memory", "ALLOC_FAILED", "bad_alloc")  # of CUDA, cuBLAS and cuDNN, RAPIDS


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: PyTorch, cuBLAS and RAPIDS each have their own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
