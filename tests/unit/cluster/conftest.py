"""Threads for the tests of a file."""

from collections.abc import Iterator

import pytest

from cluster.run import Threads


@pytest.fixture(scope="module")
def runner() -> Iterator[Threads]:
    with Threads(num_threads=2, device="cpu") as threads:
        yield threads
