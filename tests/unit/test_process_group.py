"""What is set in a worker before its process group is made."""

import os
from typing import Any

import pytest
from ray.train.torch import TorchConfig

from pipelines.workers.process_group import ProcessGroup, library_settings


class Group:
    """Workers that are this process; it notes what is run in them."""

    def __init__(self) -> None:
        self.run: list[Any] = []

    def __len__(self) -> int:
        return 0

    def get_resources_per_worker(self) -> dict[str, float]:
        return {"GPU": 1}

    def execute_single(self, rank: int, function: Any) -> tuple[str, int]:
        return "127.0.0.1", 1

    def execute(self, function: Any, *arguments: Any, **options: Any) -> None:
        self.run.append(function.__name__)
        if function.__module__ == "pipelines.workers.process_group":
            function(*arguments, **options)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """This process's own, without what is set here."""
    kept = {k: v for k, v in os.environ.items() if k not in library_settings(deterministic=True)}
    monkeypatch.setattr(os, "environ", kept)
    return kept


@pytest.mark.parametrize("deterministic", [False, True])
def test_libraries_are_set_before_the_group_is_made__and_as_a_user_has_set_them(
    deterministic: bool, environment: dict[str, str]
) -> None:
    environment["NCCL_ALGO"] = "Tree"
    config, group = ProcessGroup(environment=library_settings(deterministic)), Group()
    config.backend_cls().on_start(group, config)
    assert group.run[0] == "_set_missing" and len(group.run) > 1
    assert environment["NCCL_ALGO"] == "Tree"
    assert environment["NCCL_LAUNCH_ORDER_IMPLICIT"] == "1"
    assert environment["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE_BF16"
    assert environment.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)


def test_only_deterministic_runs_give_up_fast_sums() -> None:
    assert "NCCL_ALGO" not in library_settings(deterministic=False)
    assert library_settings(deterministic=True)["NCCL_ALGO"] == "Ring"


def test_all_else_is_rays_own() -> None:
    ours = ProcessGroup(backend="gloo").to_dict()
    assert ours == TorchConfig(backend="gloo").to_dict()
