"""Threads for the tests of a file."""

import pytest

from cluster.run import Threads


@pytest.fixture(scope="module")
def runner():
    with Threads(num_threads=2, device="cpu") as threads:
        yield threads
