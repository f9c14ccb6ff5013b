"""The GPUs of a Ray cluster for one estimate, where no worker of a run holds them."""

from typing import Any

import ray
from ray.exceptions import RayTaskError

from cluster.run import Blocks, Stage


class GpuActors:
    """`cluster.ray_run.OnGpus` by actors: one on each free GPU, until the with block ends.

    They are started when there is work for them. `device` is what they compute on.
    """

    def __init__(self, device: str = "cuda") -> None:
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        self._most = max(1, int(free.get("GPU", 0)))
        self._device = device
        self._actors: list[Any] = []

    def __enter__(self) -> "GpuActors":
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            ray.kill(actor)

    def __call__(self, stage: str, function: Stage, blocks: Blocks, *shared: Any) -> list[Any]:
        num_actors = min(self._most, len(blocks))
        while len(self._actors) < num_actors:
            self._actors.append(_GpuActor.remote())
        # Put once, and brought once to each node.
        shared = tuple(s if isinstance(s, ray.ObjectRef) else ray.put(s) for s in shared)
        parts = [
            actor.run.options(name=stage).remote(
                function, blocks[number::num_actors], self._device, *shared
            )
            for number, actor in enumerate(self._actors[:num_actors])
        ]
        values: list[Any] = [None] * len(blocks)
        try:
            for number, part in enumerate(parts):
                values[number::num_actors] = ray.get(part)
        except RayTaskError as error:
            raise error.cause from error
        return values


class _Gpu:
    def run(self, function: Stage, blocks: Blocks, device: str, *shared: Any) -> list[Any]:
        """The values of these blocks."""
        return [function(*shared, device, *block) for block in blocks]


# A lost actor starts again elsewhere, with what it had to do; as often as a task of Ray's.
_GpuActor: Any = ray.remote(num_cpus=0, num_gpus=1, max_restarts=3, max_task_retries=3)(_Gpu)
