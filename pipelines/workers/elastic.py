"""Elastic groups: as many workers as there is room for, that share batches equally.

Ray Train counts how many workers a cluster has room for. Here a batch is cut into equal shares, so
that only some numbers are possible, and some CPUs must stay free for reading images.
"""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from daal.config import RayConfig
from pipelines.workers.resources import cluster_nodes, fitting_workers, largest_share


class EqualShares(ElasticScalingPolicy):  # type: ignore[misc]
    """Ray Train's elastic policy, whose counts divide `common_batch` (`Config.common_batch`)."""

    def __init__(self, scaling_config: Any, config: RayConfig, common_batch: int) -> None:
        super().__init__(scaling_config)
        self._config, self._common_batch = config, common_batch

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        """How many workers fit into what Ray Train has reserved on each node."""
        each = self.scaling_config._resources_per_worker_not_none
        reserved = sum(
            # A worker may reserve a fraction of a CPU, and Ray's own count rounds such sums down.
            min(int(has.get(name, 0.0) / needed + 1e-6) for name, needed in each.items() if needed)
            for has in reserved_resources.values()
        )
        fitting = fitting_workers(cluster_nodes(), self._config, bool(self.scaling_config.use_gpu))
        most = min(reserved, fitting, self.scaling_config.max_workers)
        return largest_share(most, self._common_batch)


class ElasticTrainer(TorchTrainer):
    """A TorchTrainer with this policy, or with Ray's own. Ray 2.60 has no argument for it."""

    def __init__(self, *arguments: Any, policy: EqualShares | None, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._policy = policy

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        if self._policy is not None:
            given["scaling_policy"] = self._policy
        return super()._initialize_and_run_controller(**given)  # type: ignore[misc]
