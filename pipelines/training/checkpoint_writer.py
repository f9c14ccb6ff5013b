"""Checkpoints that are written while the training continues.

The state is copied to the host, and a thread of Ray Train writes the copy, so that Ray Train's
`report` is a short barrier. A checkpoint counts once it is whole in the run folder.
"""

import shutil
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray.train
from ray._common.retry import call_with_retry
from ray.train.v2._internal.constants import AWS_RETRYABLE_TOKENS
from torch import Tensor

from daal import checkpoint
from daal.errors import StorageError
from daal.host_copy import HostCopy
from pipelines.workers.group import Worker

TELL_SECONDS = 600.0  # how long a failed write waits until the training has noticed it


class CheckpointWriter:
    """Rank 0 writes the checkpoints of one training, one at a time."""

    def __init__(self, stage: str, worker: Worker) -> None:
        self._stage, self._worker = stage, worker
        self._done: Future[None] = Future()
        self._done.set_result(None)
        self._told = threading.Event()

    def begin(
        self, next_step: int, tensors: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]
    ) -> None:
        """Hand the tensors as they are now to Ray Train; a barrier for all workers.

        Waits for the previous checkpoint. Only rank 0's tensors are used.

        Raises:
            StorageError: the previous one could not be written.
        """
        if self._worker.rank != 0:
            _report(next_step)
            return
        self.finish()
        copy = HostCopy(*tensors.values(), *optimizer.values())
        done = self._done = Future()
        scratch = tempfile.mkdtemp()
        local = ray.train.Checkpoint.from_directory(f"{scratch}/checkpoint")

        def write(local: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            try:
                copies = iter(copy.tensors())
                checkpoint.save(
                    Path(local.path),
                    dict(zip(tensors, copies, strict=False)),
                    {"stage": self._stage, "next_step": next_step},
                    dict(zip(optimizer, copies, strict=True)),
                )
                self._worker.reach(self._stage, next_step - 1, "saving")
                stored = self._store(local, name)
            except Exception as error:
                # The training shall end with this error before Ray Train restarts the workers.
                done.set_exception(error)
                self._told.wait(TELL_SECONDS)
                raise
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            done.set_result(None)
            return stored

        _report(next_step, checkpoint=local, checkpoint_upload_fn=write)

    def _store(self, local: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        storage = ray.train.get_context().get_storage()
        try:
            return call_with_retry(
                lambda: storage.persist_current_checkpoint(local, name),
                "store a checkpoint", AWS_RETRYABLE_TOKENS, max_attempts=3,
            )  # fmt: skip
        except OSError as error:
            raise StorageError(
                f"a checkpoint of {self._stage} can't be written to the run folder ({error}); "
                "make room or check the storage, and the same command continues the run."
            ) from error

    def raise_if_failed(self) -> None:
        """Raises StorageError if the last checkpoint could not be written; doesn't wait for it."""
        if self._done.done():
            self.finish()

    def finish(self) -> None:
        """Wait until the last checkpoint is in the run folder.

        Raises:
            StorageError: it could not be written.
        """
        try:
            self._done.result()
        except Exception:
            self._told.set()
            raise


def _report(next_step: int, **checkpoint: Any) -> None:
    ray.train.report(
        {"next_step": next_step},
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=False,
        **checkpoint,
    )
