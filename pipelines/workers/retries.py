"""What is tried again after a failure, and what ends a run.

Tried again:
- A worker dies, or its job raises an error of another package: Ray Train restarts the group
  (`pipelines.workers.group`), which repeats the job (a training from its last
  checkpoint), up to `ray.max_failures` times in a run.
- A node announces that it will leave: the same after a checkpoint at the end of the epoch; not
  counted.
- A rank makes no step for `ray.stall_minutes`: it ends itself (`pipelines.workers.watchdog`), and
  the group restarts.
- A Ray task dies (decoding; on CPUs also labels and scores): Ray runs it up to three times.

Ends the run:
- An error of ours, a full GPU, a missing package, a torch without the GPU's kind (`final`).
- An error of the program that comes a second time in the same job (`mistake`).
- The driver or its cluster is lost: the same command continues after the last stage in the journal.
"""

import re

import torch

from cluster.device import is_out_of_memory
from daal.errors import ClusterError, DaalError, first_line

IMPORT_FAILED = re.compile(r"(?:ModuleNotFound|Import)Error: ([^\n]+)")
NO_KERNEL = "no kernel image is available"  # CUDA's words
PROGRAM_ERRORS = (TypeError, ValueError, AttributeError, NameError, LookupError, AssertionError)
# Ray Train's reasons to give up, by a part of their text.
GROUP_ERRORS = {
    "Gloo connect": "the workers can't reach each other: their hosts' names mean a loopback "
    "address; set GLOO_SOCKET_IFNAME to the network interface, e.g. eth0, where ray start is "
    "called.",
    "no GPUs found": "Ray counts GPUs that torch can't use; daal doctor says why (an old driver, a "
    "torch without CUDA): update it, or set ray.use_gpu=false.",
}


def final(error: Exception) -> DaalError | None:
    """The error that a job's failure ends the run with; None if the job is tried again."""
    cause = getattr(error, "cause", None)  # of a task of Ray
    if isinstance(cause, DaalError):
        return type(cause)(first_line(cause))  # without Ray Data's advice
    if isinstance(error, DaalError):
        return error
    if is_out_of_memory(error) and not isinstance(error, MemoryError):  # the host's memory
        return ClusterError(
            f"the GPU's memory ran out ({first_line(error)}); end other programs on it, double "
            "accumulate (a part keeps all adapt.images_per_id images of an identity), set "
            "ray.images=decoded, use more workers, or set ray.use_gpu=false."
        )
    if isinstance(error, ImportError):
        return _import_failed(first_line(error))
    if isinstance(error, RuntimeError) and NO_KERNEL in str(error):
        return ClusterError(
            f"a worker's torch {torch.__version__} was built without its GPU's kind; install a "
            "torch for it on all nodes, or set ray.use_gpu=false."
        )
    return None


def mistake(error: Exception) -> str | None:
    """An error of the program, in one line; None if another try may succeed."""
    is_mistake = isinstance(error, PROGRAM_ERRORS) and not isinstance(error, OSError)
    return f"{type(error).__name__}: {first_line(error)}" if is_mistake else None


def repeated(mistake: str) -> ClusterError:
    """The error that ends the run when a mistake comes a second time."""
    return ClusterError(
        f"the workers have stopped twice with {mistake}: an error of the program, which would come "
        "again; -v shows where, please report it."
    )


def cause_of(error: BaseException | None) -> BaseException:
    """What to tell the user when Ray Train has given up: our own error, if one is inside Ray's."""
    if error is None:
        return ClusterError("the workers ended before their work; run the same command again.")
    failures = getattr(error, "worker_failures", {})
    for failure in [*failures.values(), error.__cause__]:
        seen = failure
        while seen is not None:
            if isinstance(seen, DaalError):
                return type(seen)(str(seen).splitlines()[0])
            if isinstance(seen, Exception) and (found := final(seen)):
                return found
            seen = getattr(seen, "cause", None) or seen.__cause__
    reason = next((str(failure) for failure in failures.values()), str(error))
    if failed := IMPORT_FAILED.search(reason):
        return _import_failed(failed[1])
    for part, text in GROUP_ERRORS.items():
        if part in reason:
            return ClusterError(text)
    return ClusterError(
        f"the workers stopped: {reason.strip().splitlines()[-1]}; the same command continues the "
        "run, and -v shows what Ray says."
    )


def _import_failed(reason: str) -> ClusterError:
    return ClusterError(
        f"a worker can't import what the run needs: {reason}; install the same daal-reid and "
        "its packages on all nodes, and start it where no folder or file has a package's name."
    )
