"""Objects of the object store, got once by a process that runs many tasks of one stream."""

from functools import lru_cache
from typing import Any

import ray


@lru_cache(maxsize=8)
def get_once(reference: ray.ObjectRef[Any]) -> Any:
    return ray.get(reference)
