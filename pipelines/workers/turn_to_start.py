"""Runs on one cluster start their workers one after the other, and only where all of a run fits.

Workers hold their CPUs as long as the run lasts. If the workers of two runs took all CPUs, both
runs would wait for ever for a CPU that decodes images.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from daal.config import RayConfig
from pipelines.workers.cluster_address import cluster_address
from pipelines.workers.resources import Resources

NAME, NAMESPACE = "starting", "daal"
QUIET_SECONDS = 5.0  # of waiting, until the user is told
POLL_SECONDS = 1.0


@ray.remote(num_cpus=0)
class _Turn:
    """Its name is the lock. It ends with the run that made it, however that ends."""


@contextmanager
def turn_to_start(
    config: RayConfig, resources: Resources, say: Callable[[str], None]
) -> Iterator[None]:
    """Waits for this run's turn and for room; start the workers inside.

    A Ray of the run's own has no other runs and enough room.
    """
    if not cluster_address():
        yield
        return
    waits = "note: waiting for another run, which is waiting for room or starting"
    turn = _wait_for(_take_turn, lambda: say(waits))
    try:
        room = ask_for_room(config, resources)
        try:
            _wait_for(
                lambda: ray.wait([room.ready()], timeout=POLL_SECONDS)[0],
                lambda: say(_what_is_missing(config, resources)),
            )
        finally:
            remove_placement_group(room)
        yield
    finally:
        ray.kill(turn)


def _wait_for(attempt: Callable[[], Any], tell: Callable[[], None]) -> Any:
    """The first true value of `attempt`; `tell` is called once if it takes long."""
    started, told = time.monotonic(), False
    while not (found := attempt()):
        if not told and time.monotonic() - started > QUIET_SECONDS:
            told = True
            tell()
    return found


def _take_turn() -> Any:
    try:
        return _Turn.options(name=NAME, namespace=NAMESPACE).remote()  # type: ignore[attr-defined]
    except ValueError:  # the name is taken
        time.sleep(POLL_SECONDS)
        return None


def ask_for_room(config: RayConfig, resources: Resources) -> Any:
    """A placement group of all that a run holds at a time. Ray grants it whole or not at all, and
    an autoscaler sees it as demand."""
    workers = [resources.per_worker] * resources.least_workers
    return placement_group([*workers, *[{"CPU": 1.0}] * config.data_cpus])


def _what_is_missing(config: RayConfig, resources: Resources) -> str:
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    each = f"{config.cpus_per_worker:g} CPUs" + (" and a GPU" if resources.use_gpu else "")
    gpus = f"{free.get('GPU', 0):g} GPUs and " if resources.use_gpu else ""
    return (
        f"note: waiting for room: {resources.least_workers} workers of {each}, and "
        f"{config.data_cpus} CPUs for reading images; free are {gpus}{free.get('CPU', 0):g} CPUs "
        "on all nodes, other work holds the rest"
    )
