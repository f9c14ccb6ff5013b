"""What is done again after a failure, and what ends the run.

A worker dies, or its job raises anything that isn't ours: Ray Train starts the group anew, and it
takes the job again, a training from its last checkpoint; `ray.max_failures` times in a run.
A node is announced to go: the same, behind a checkpoint at the epoch's end; this doesn't count.
A rank stands still: it says where, ends itself (`pipelines.watchdog`), and the group starts anew.
A job raises an error of ours, or a GPU's memory is full: the run ends; it would come again.
A Ray task dies (decoding, pseudo-labels, scores): Ray's default, three tries; the same bits.
The driver or its cluster is lost: the same command goes on behind the last finished stage, which
the journal knows (`pipelines.run_folder`).
"""

import torch

from daal.errors import ClusterError, DaalError


def final(error: Exception) -> DaalError | None:
    """The error that a job's failure ends the run with; None if the job is worth another try."""
    if isinstance(error, DaalError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return ClusterError(
            f"the GPU's memory ran out ({str(error).splitlines()[0]}); double adapt.accumulate "
            "and pretrain.accumulate (a part keeps all adapt.images_per_id images of an identity), "
            "lower ray.extract_batch, set ray.images=decoded, or use more workers."
        )
    return None


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
            seen = getattr(seen, "cause", None) or seen.__cause__
    reason = next((str(failure) for failure in failures.values()), str(error))
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
