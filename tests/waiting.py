"""Waiting for what must come, without a guess at how fast or how busy the machine is."""

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

GIVE_UP_SECONDS = 900  # for something that will never come; no measure of speed

Found = TypeVar("Found")


def wait_until(condition: Callable[[], Found], what: str, pause: float = 0.1) -> Found:
    """The first answer of `condition` that is true; the test fails with `what` if none comes."""
    begun = time.monotonic()
    while not (found := condition()):
        if time.monotonic() - begun > GIVE_UP_SECONDS:
            pytest.fail(f"{what}: not within {GIVE_UP_SECONDS} s")
        time.sleep(pause)
    return found
