"""Starts a Ray of this machine alone, also on a busy machine.

Ray 2.60 gives its processes 30 seconds to start. Then it raises a bare Exception and leaves the
processes running.
"""

from typing import Any

import psutil
import ray

from daal.errors import ClusterError

TRIES = 3
TOO_SLOW = "timed out during startup"  # Ray's words
END_SECONDS = 10.0  # that its processes may take to end


def start_own_ray(num_cpus: int, **options: Any) -> None:
    """Start a Ray and connect to it; its ports are on loopback.

    Raises:
        ClusterError: the machine was too busy at each of three tries.
    """
    this = psutil.Process()
    for _ in range(TRIES):
        before = this.children()
        try:
            ray.init(
                address="local", num_cpus=num_cpus, dashboard_host="127.0.0.1",
                include_dashboard=True, **options,
            )  # fmt: skip
            return
        except Exception as error:
            if TOO_SLOW not in str(error):
                raise
        _end([child for child in this.children() if child not in before])
    raise ClusterError(
        f"a local Ray didn't start in time ({TRIES} tries): this machine is too busy; end other "
        "programs, or run the same command again later."
    )


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        process.terminate()
    left = psutil.wait_procs(processes, timeout=END_SECONDS)[1]
    for process in left:  # a Python that is still importing doesn't end on SIGTERM
        process.kill()
    psutil.wait_procs(left, timeout=END_SECONDS)
