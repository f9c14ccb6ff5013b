"""How rows are cut into blocks, how blocks meet, and how loops over them are compiled."""

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def row_blocks(num_rows: int, num_blocks: int) -> list[tuple[int, int]]:
    """Cut `num_rows` into at most `num_blocks` (start, stop) of nearly equal size, none empty."""
    num_blocks = max(1, min(num_blocks, num_rows))
    edges = [num_rows * block // num_blocks for block in range(num_blocks + 1)]
    return list(pairwise(edges))


def tournament(num_blocks: int) -> list[list[tuple[int, int]]]:
    """Rounds in which every two blocks meet exactly once, and no block twice in a round.

    The pairs of a round can be worked on at the same time without sharing a block. (The circle
    method: one place stays, the others turn around it; with an odd number one block rests.)
    """
    places = list(range(num_blocks + num_blocks % 2))
    rounds = []
    for _ in range(len(places) - 1):
        pairs = islice(zip(places, reversed(places), strict=True), len(places) // 2)
        rounds.append([(min(pair), max(pair)) for pair in pairs if max(pair) < num_blocks])
        places = [places[0], places[-1], *places[1:-1]]
    return rounds


def kernel(function: Function) -> Function:
    """Compile a loop with numba: cached on disk (cold compiles take seconds), GIL released."""
    is_kept = compiled_code_folder() is not None
    return cast(Function, numba.njit(cache=is_kept, nogil=True)(function))


@cache
def compiled_code_folder() -> str | None:
    """Where compiled loops are kept; None if there is no folder that can be written.

    NUMBA_CACHE_DIR, beside the code, or the user's own cache, whichever can be written first. A
    container may have none of them: then a folder of this user's own among the temporary ones.
    """
    with suppress(RuntimeError):
        return _numbas_folder()
    with suppress(RuntimeError, OSError):
        numba.config.CACHE_DIR = _private_temporary_folder()
        return _numbas_folder()
    return None


def _numbas_folder() -> str:
    # Raises RuntimeError if numba finds none.
    return str(numba.njit(cache=True)(row_blocks)._cache.cache_path)


def _private_temporary_folder() -> str:
    folder = Path(tempfile.gettempdir(), f"daal-compiled-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    # Numba runs what it finds there, so nobody else may have written it.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not this user's own")
    return str(folder)
