"""What is done again after a failure, and what ends the run.

A worker dies, or its job raises anything that isn't ours: Ray Train starts the group anew, and it
takes the job again, a training from its last checkpoint; `ray.max_failures` times in a run.
A node is announced to go: the same, behind a checkpoint at the epoch's end; this doesn't count.
A rank stands still: it says where and ends itself (`pipelines.workers.watchdog`), and the group
starts again.
A job raises an error of ours, a GPU's memory is full, a package is missing, or torch wasn't built
for the GPU: the run ends; it would come again.
A Ray task dies (decoding; on CPUs also pseudo-labels and scores, which are jobs on GPUs): Ray's
default, three tries; the same bits.
The driver or its cluster is lost: the same command continues after the last finished stage, which
the journal knows (`pipelines.run.folder`).
"""

import re

import torch

from cluster.device import is_out_of_memory
from daal.errors import ClusterError, DaalError, first_line

IMPORT_FAILED = re.compile(r"(?:ModuleNotFound|Import)Error: ([^\n]+)")
NO_KERNEL = "no kernel image is available"  # CUDA's words
PROGRAM_ERRORS = (TypeError, ValueError, AttributeError, NameError, LookupError, AssertionError)


OF_WORKERS = (
    "double accumulate (a part keeps all adapt.images_per_id images of an identity), set "
    "ray.images=decoded, or use more workers"
)
OF_TASKS = "end what else uses that GPU, or set ray.use_gpu=false, which takes the CPUs"


def final(error: Exception, for_memory: str = OF_WORKERS) -> DaalError | None:
    """The error that a job's failure ends the run with; None if the job is worth another try.

    `for_memory`: what helps if it is the memory of a GPU.
    """
    if isinstance(error, DaalError):
        return error
    if is_out_of_memory(error) and not isinstance(error, MemoryError):  # which is the host's
        said = first_line(error)
        return ClusterError(f"the GPU's memory ran out ({said}); {for_memory}.")
    if isinstance(error, ImportError):
        return _import_failed(first_line(error))
    if isinstance(error, RuntimeError) and NO_KERNEL in str(error):
        return ClusterError(
            f"a worker's torch {torch.__version__} was built without its GPU's kind; install a "
            "torch for it on all nodes, or set ray.use_gpu=false."
        )
    return None


def mistake(error: Exception) -> str | None:
    """What the program has done wrong, in one line; None if another try may mend the error."""
    is_mistake = isinstance(error, PROGRAM_ERRORS) and not isinstance(error, OSError)
    return f"{type(error).__name__}: {first_line(error)}" if is_mistake else None


def repeated(mistake: str) -> ClusterError:
    """The error that a mistake ends the run with when it has come again."""
    return ClusterError(
        f"the workers have stopped twice with {mistake}: an error of the program, which would come "
        "again; -v shows where, please report it."
    )


def _import_failed(reason: str) -> ClusterError:
    return ClusterError(
        f"a worker can't import what the run needs: {reason}; install the same daal-reid and "
        "its packages on all nodes, and start it where no folder or file has a package's name."
    )


def cause_of(error: BaseException | None) -> BaseException:
    """What to tell the user when Ray Train has given the group up: our own error, if one is inside
    Ray's."""
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
    if "Gloo connect" in reason:
        return ClusterError(
            "the workers can't reach each other: their hosts' names mean a loopback address; set "
            "GLOO_SOCKET_IFNAME to the network interface, e.g. eth0, where ray start is called."
        )
    if "no GPUs found" in reason:
        return ClusterError(
            "Ray counts GPUs that torch can't use; daal doctor says why (an old driver, a torch "
            "without CUDA): update it, or set ray.use_gpu=false."
        )
    return ClusterError(
        f"the workers stopped: {reason.strip().splitlines()[-1]}; the same command continues the "
        "run, and -v shows what Ray says."
    )
