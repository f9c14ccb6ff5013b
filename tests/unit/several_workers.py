"""Real processes that talk by gloo, each with something to find out."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def found_by_workers(function: Callable[[int], Any], num_workers: int, folder: Path) -> list[Any]:
    """What each worker's `function(rank)` returns; a function at the top of a module."""
    multiprocessing.set_forkserver_preload(["daal.step"])  # imported once, not by each worker
    torch.multiprocessing.start_processes(
        _run, (function, num_workers, folder), nprocs=num_workers, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(num_workers)]


def _run(rank: int, function: Callable[[int], Any], num_workers: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_workers
    )
    torch.save(function(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()
