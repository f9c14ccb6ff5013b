"""Errors that would come again end a run, with a remedy that fits."""

import re

import numpy as np
import pytest
import torch
from ray.exceptions import RayTaskError

from daal.errors import ClusterError, DataError
from pipelines.commands.arguments import ray_errors
from pipelines.workers.retries import cause_of, final

MISSING = ModuleNotFoundError("No module named 'cluster.soft_labels'")


def given_up(failure):
    """As Ray Train raises it, once a group has failed too often."""
    error = RuntimeError("Worker group failed")
    error.worker_failures = {0: failure}
    return error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MISSING, "install the same daal-reid"),
        (ImportError("numpy.core failed to import"), "numpy.core failed.*install the same"),
        (RuntimeError("CUDA error: no kernel image is available for exec..."), "was built without"),
    ],
)
def test_what_would_come_again__is_final(error, says):
    assert re.search(says, str(final(error)))


@pytest.mark.parametrize(
    "full",
    [torch.OutOfMemoryError("CUDA full.\nTried"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")],
)
def test_a_full_gpu__in_a_job_or_a_task(full):
    assert "double accumulate" in str(final(full))
    with pytest.raises(ClusterError, match=r"GPU's memory ran out \(C[^\n]*use_gpu=false"):
        with ray_errors("the same command continues it."):
            raise RayTaskError("_GpuActor.run", "Traceback ...", full)


def test_our_error_in_a_task_of_ray__keeps_its_words_and_no_others() -> None:
    ours = DataError("a.arrow is not there any more; start the run again.\nFailed after 1 attempt")
    found = final(
        RayTaskError("_decoded_step", "Traceback ...", ours).make_dual_exception_instance()
    )
    assert type(found) is DataError
    assert str(found) == "a.arrow is not there any more; start the run again."


def test_what_may_pass__is_tried_again() -> None:
    errors = RuntimeError("Connection closed by peer"), ValueError("x"), OSError("away")
    for error in (*errors, MemoryError("Unable to allocate 8 GiB")):
        assert final(error) is None


@pytest.mark.parametrize(
    "failure",
    [MISSING, RayTaskError("serve", f"Traceback ...\nModuleNotFoundError: {MISSING}", MISSING),
     RuntimeError(f"Traceback ...\nModuleNotFoundError: {MISSING}\n\nThe above ...")],
)  # fmt: skip
def test_a_group_that_could_not_import__is_not_told_to_try_again(failure):
    said = str(cause_of(given_up(failure)))
    assert "No module named 'cluster.soft_labels'" in said and "install the same daal-reid" in said
    assert "same command" not in said


def test_errors_of_tasks__keep_their_kind():
    """Ray's wrapper of a task's error is both its own and the task's kind."""
    for cause, kind in ((MISSING, ClusterError), (DataError("no query."), DataError)):
        wrapped = RayTaskError("evaluate", "Traceback ...", cause).as_instanceof_cause()
        with pytest.raises(kind) as raised, ray_errors("the same command continues it."):
            raise wrapped
        assert type(raised.value) is kind and "same command" not in str(raised.value)
    with pytest.raises(ClusterError, match="same command"):
        with ray_errors("the same command continues it."):
            raise RayTaskError("x", "Traceback ...\nValueError: y", ValueError(np.int64(1)))


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        ("Gloo connectFullMesh failed with [..] connect [127.0.1.1]:34567", "GLOO_SOCKET_IFNAME"),
        ("node died", "the same command continues"),
        ("ProcessGroupNCCL is only supported with GPUs, no GPUs found!", "daal doctor"),
    ],
)
def test_failures_whose_cause_is_known(failure, says):
    assert says in str(cause_of(given_up(RuntimeError(failure))))
