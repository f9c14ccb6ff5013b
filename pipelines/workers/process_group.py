"""Ray Train's process group of the workers, made after its libraries' variables are set.

NCCL, cuBLAS and oneDNN read their variables once, when a process first uses them. Values that a
node's user has set stay.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from pipelines.workers.ray_environment import ONEDNN


def library_settings(deterministic: bool) -> dict[str, str]:
    """Variables of each worker's environment."""
    settings = {
        # Shared BatchNorm's groups of workers exchange sums while DDP's reduction of all workers is
        # under way. Without this, two groups at once may wait for each other for ever.
        "NCCL_LAUNCH_ORDER_IMPLICIT": "1",
        **ONEDNN,
    }
    if deterministic:
        settings |= {
            "NCCL_ALGO": "Ring",  # a switch that adds (NVLS) does it in any order
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # which torch asks for
        }
    return settings


@dataclass
class ProcessGroup(TorchConfig):  # type: ignore[misc]
    """Ray Train's own, with `environment` for variables that a worker doesn't have."""

    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def backend_cls(self) -> Any:
        return _Backend


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_set_missing, backend_config.environment)
        super().on_start(worker_group, backend_config)


def _set_missing(environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        os.environ.setdefault(name, value)
