"""Losses over all workers' images: the gradient of one worker that has them all."""

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from daal.losses import triplet_loss
from daal.whole_batch import whole_batch

NUM_WORKERS = 3
LABELS = torch.arange(12) // 4
IMAGES = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))


def layer() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(5, 4)


def found_by(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    features = whole_batch(model(images))
    loss = triplet_loss(features, whole_batch(labels))
    loss.backward()
    gradients = {name: p.grad for name, p in getattr(model, "module", model).named_parameters()}
    return {"features": features.detach(), "loss": loss.detach(), **gradients}  # type: ignore[dict-item]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=NUM_WORKERS
    )
    mine = slice(rank, None, NUM_WORKERS)
    found = found_by(DistributedDataParallel(layer()), IMAGES[mine], LABELS[mine])
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("workers")
    multiprocessing.set_forkserver_preload(["daal.step"])
    torch.multiprocessing.start_processes(
        worker, (str(folder),), nprocs=NUM_WORKERS, start_method="forkserver"
    )
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(NUM_WORKERS)]


def test_every_worker_has_the_batch_in_its_own_order(found: list[dict[str, Tensor]]) -> None:
    expected = layer()(IMAGES).detach()
    for each in found:
        torch.testing.assert_close(each["features"], expected)


def test_the_gradient_is_that_of_one_worker(found: list[dict[str, Tensor]]) -> None:
    expected = found_by(layer(), IMAGES, LABELS)
    assert float(expected["weight"].abs().max()) > 0.01
    for each in found:
        for name in ("loss", "weight", "bias"):
            torch.testing.assert_close(each[name], expected[name], msg=name)
