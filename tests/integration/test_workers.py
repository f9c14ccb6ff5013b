"""A group of workers: one for many jobs, started again when a worker dies, ended by errors."""

import io
import json
import os
import signal
import sys
from dataclasses import dataclass

import pytest
import ray
import torch
from rich.console import Console
from tiny_run import silent
from torch import distributed

from daal.errors import ClusterError, DataError
from pipelines.run.folder import RunFolder
from pipelines.show.progress import Progress
from pipelines.workers.group import Workers
from pipelines.workers.planned_faults import FAULTS
from pipelines.workers.ray_environment import worker_variables
from pipelines.workers.session import ray_session

# Workers can't import the module of a test.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class WhoAmI:
    def run(self, worker):
        worker.reach("who", 0)
        return worker.rank, worker.world_size, os.getpid()


@dataclass(frozen=True)
class OneFails:
    """Rank 1 finds bad data while rank 0 waits for it."""

    def run(self, worker):
        if worker.rank == 1:
            raise DataError("row 7 is not an image.")
        distributed.all_reduce(torch.zeros(1))


@dataclass(frozen=True)
class Mistaken:
    """A mistake in a program, which every attempt makes again."""

    def run(self, worker):
        raise ValueError("as ever")


@dataclass(frozen=True)
class Crash:
    def run(self, worker):
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Meet:
    """All ranks meet in a collective; a test may have one of them hang on the way there."""

    def run(self, worker):
        worker.reach("meeting", 3)
        number = torch.ones(1)
        distributed.all_reduce(number)
        return int(number)


@dataclass(frozen=True)
class Libraries:
    """What is set of their variables, as seen from a job."""

    def run(self, worker):
        return {name: os.environ.get(name) for name in worker_variables(deterministic=True)}


def group(config, folder, **ray_settings):
    config = config.model_copy(update={"ray": config.ray.model_copy(update=ray_settings)})
    return config, RunFolder(str(folder)), silent()


def test_one_group_for_many_jobs__a_hang_starts_it_again__and_an_error_ends_it(
    ray_cluster, two_workers, tmp_path, monkeypatch
):
    events = []
    output = io.StringIO()
    config, folder, _ = group(two_workers, tmp_path, stall_minutes=20 / 60)
    progress = Progress(events.append, Console(file=output, width=1000))
    hang = {"stage": "meeting", "step": 3, "rank": 1, "kind": "hang"}
    monkeypatch.setenv(FAULTS, json.dumps([hang]))
    with (
        ray_session(config.ray) as resources,
        Workers(config, folder, resources, progress) as workers,
    ):
        # Each rank says where it is, and a new group does the same job.
        assert workers.run(Meet()) == [2, 2]
        assert workers.num_starts() == 2
        stalled = {event["rank"]: event for event in events if "stack" in event}
        assert set(stalled) == {0, 1}
        assert "faults.py" in stalled[1]["stack"] and "time.sleep" in stalled[1]["stack"]
        assert "all_reduce" in stalled[0]["stack"]
        assert all(event["stage"] == "meeting" and event["step"] == 3 for event in stalled.values())
        assert "rank 1 has finished no step for" in output.getvalue()

        first, second = workers.run(WhoAmI()), workers.run(WhoAmI())
        assert [(rank, size) for rank, size, _ in first] == [(0, 2), (1, 2)]
        assert first == second, "the second job met other processes"
        assert workers.run(Libraries()) == [worker_variables(deterministic=True)] * 2
        assert workers.num_starts() == 2
        # An error of the program is tried once more, not ray.max_failures times.
        with pytest.raises(ClusterError, match="stopped twice with ValueError: as ever"):
            workers.run(Mistaken())
        assert workers.num_starts() == 3
        # Bad data in one worker ends the job with its message, whatever the others wait for.
        with pytest.raises(DataError, match="row 7"):
            workers.run(OneFails())


@pytest.mark.nightly  # unit/test_retries.py has which errors are final
def test_workers_that_die_again_and_again__and_a_gpu_without_memory_left__are_given_up(
    ray_cluster, tiny_config, tmp_path
):
    config, folder, progress = group(tiny_config, tmp_path, max_failures=1, num_workers=1)
    with ray_session(config.ray) as resources, pytest.raises(ClusterError, match="same command"):
        with Workers(config, folder, resources, progress) as workers:
            workers.run(Crash())
