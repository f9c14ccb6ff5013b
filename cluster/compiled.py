"""How loops are compiled, where the compiled code is kept, and a helper that loops share."""

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile a loop with numba: cached on disk (cold compiles take seconds), GIL released."""
    can_cache = compiled_code_folder() is not None
    return cast(Function, numba.njit(cache=can_cache, nogil=True)(function))


@cache
def compiled_code_folder() -> str | None:
    """Where compiled loops are kept; None if there is no folder that can be written.

    The first that can be written of NUMBA_CACHE_DIR, the folder of the code, and the user's cache.
    A container may have none of them: then numba is set to a temporary folder of this user.
    """
    with suppress(RuntimeError):
        return _numbas_folder()
    with suppress(RuntimeError, OSError):
        numba.config.CACHE_DIR = _private_temporary_folder()
        return _numbas_folder()
    return None


def _numbas_folder() -> str:
    # numba tells its folder only of a function that it wraps: any will do. RuntimeError if none.
    return str(numba.njit(cache=True)(compiled_code_folder.__wrapped__)._cache.cache_path)


def _private_temporary_folder() -> str:
    folder = Path(tempfile.gettempdir(), f"daal-compiled-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    # Numba runs what it finds there, so no other user may have written it.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not this user's own")
    return str(folder)


@kernel
def grown(array: Any, num_used: int) -> Any:
    """An array of twice the length that begins with the first `num_used` numbers."""
    larger = np.empty(2 * len(array), array.dtype)
    larger[:num_used] = array[:num_used]
    return larger
