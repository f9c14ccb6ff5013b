"""What several files of tests need."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """This process as the only worker of a group."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For torch, whose sums are the same bits then on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
