"""Losses over all workers' images: the gradient of one worker that has them all."""

import torch
from several_workers import found_by_workers
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from daal.losses import triplet_loss
from daal.whole_batch import whole_batch

NUM_WORKERS = 3
LABELS = torch.arange(12) // 4
IMAGES = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))


def layer():
    torch.manual_seed(1)
    return nn.Linear(5, 4)


def found_by(model, images, labels):
    features = whole_batch(model(images))
    loss = triplet_loss(features, whole_batch(labels))
    loss.backward()
    gradients = {name: p.grad for name, p in getattr(model, "module", model).named_parameters()}
    return {"features": features.detach(), "loss": loss.detach(), **gradients}


def worker(rank):
    mine = slice(rank, None, NUM_WORKERS)
    return found_by(DistributedDataParallel(layer()), IMAGES[mine], LABELS[mine])


def test_every_worker_has_the_batch_in_its_order__and_the_gradient_of_one(tmp_path):
    expected = found_by(layer(), IMAGES, LABELS)
    assert float(expected["weight"].abs().max()) > 0.01
    for found in found_by_workers(worker, NUM_WORKERS, tmp_path):
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, msg=name)
