"""Variables that Ray and oneDNN are started with; what the user has set stays.

They are set for a command's process, or for the length of a `ray_session`. Importing `pipelines`
sets none.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.workers.cluster_address import is_own_ray

# Without it, CPUs with AMX don't compute in bf16 (`daal.precision`).
ONEDNN = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
ALWAYS = {
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's Train tab is empty without
    # A task without a GPU sees none. By Ray's default it sees all GPUs of its node, and a library
    # that looks for one would take some of its memory.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    **ONEDNN,
}
OWN_RAY = {
    "RAY_AUTH_MODE": "token",  # a local Ray's dashboard and job API ask for a token
    # Ray's own switch, by the name of where it is the default: all its ports on loopback.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray lowers its workers' priority (nice 15): beside other busy programs they would take minutes
    # to start.
    "RAY_worker_niceness": "0",
    # Ray's C++ side writes warnings about its own actors to our standard error.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


def worker_variables(deterministic: bool) -> dict[str, str]:
    """Variables of a training's workers, for libraries that read them once."""
    wanted = {
        # Shared BatchNorm's groups of workers exchange sums during DDP's reduction of all workers.
        # Without this, two groups at once may wait for each other for ever.
        "NCCL_LAUNCH_ORDER_IMPLICIT": "1",
        **ONEDNN,
    }
    if deterministic:
        wanted["NCCL_ALGO"] = "Ring"  # a switch that adds (NVLS) does it in any order
        wanted["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # torch requires it
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def set_for_process() -> None:
    """For a command: call it before Ray is imported, which reads some of them."""
    for name, value in _missing().items():
        os.environ[name] = value


@contextmanager
def set_for_session() -> Iterator[None]:
    """For a program that has imported Ray already. All is as before at the end."""
    from ray._private import ray_constants

    missing = _missing()
    # A session or Ray may set the two of authentication.
    unset = {*missing, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} - os.environ.keys()
    was_cluster = ray_constants.ENABLE_RAY_CLUSTER
    if "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" in missing:
        # Ray read it at its import; the processes that it starts read the variable.
        ray_constants.ENABLE_RAY_CLUSTER = False
    # The mode can't change once Ray is imported; a new Ray sets it to "token" by itself.
    missing.pop("RAY_AUTH_MODE", None)
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in unset:
            os.environ.pop(name, None)
        ray_constants.ENABLE_RAY_CLUSTER = was_cluster


def _missing() -> dict[str, str]:
    wanted = ALWAYS | OWN_RAY if is_own_ray() else ALWAYS
    return {name: value for name, value in wanted.items() if name not in os.environ}
