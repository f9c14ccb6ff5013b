"""One Ray for the whole test run, and a tiny drawn world."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Four logical CPUs, whatever the machine has."""
    import logging

    import pipelines  # noqa: F401, I001  makes its settings before Ray is imported
    import ray
    ray.init(
        address="local", num_cpus=4, include_dashboard=True, dashboard_host="127.0.0.1",
        logging_level=logging.ERROR, log_to_driver=False,
    )  # fmt: skip
    yield
    ray.shutdown()
