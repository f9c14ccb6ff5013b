"""What a job has left of a GPU's memory is given back before the next one."""

import gc

import pytest
import torch

from pipelines.workers.group import free_memory


@pytest.mark.parametrize(
    ("device", "expected"), [("cuda", ["collect", "empty_cache"]), ("cpu", [])]
)
def test_garbage_first__then_the_cache(
    device: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(gc, "collect", lambda: done.append("collect"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("empty_cache"))
    free_memory(torch.device(device))
    assert done == expected
