"""What each backbone must do, whatever it is."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from daal.config import AdaptOptimConfig, LossConfig
from daal.data.augment import normalise
from daal.data.images import decode
from daal.drawn.domains import draw_domains
from daal.export import SUFFIXES, export
from daal.load_config import load_config
from daal.nn.network import DaalNetwork
from daal.optimizer import make_optimizer
from daal.precision import mixed_precision
from daal.step import TrainBatch, train_step
from daal.trained_model import TrainedModel


def drawn_images(folder: Path) -> Tensor:
    """Eight drawn images of 64x32, uint8."""
    draw_domains(folder, num_train_ids=4, num_test_ids=1, images_per_camera=2, size=(64, 32))
    files = sorted((folder / "source/bounding_box_train").glob("*.jpg"))[:8]
    pixels = np.stack([decode(file.read_bytes(), 64, 32) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def trained(backbone: str, folder: Path) -> TrainedModel:
    """Two steps move all that isn't frozen, with a gradient for each parameter."""
    config = load_config(None, [
        f"network.backbone={backbone}", "network.weights=none", "network.neck=bnneck",
        "network.domain_batch_norm=true", "network.frozen_stages=1",
        "network.attention.zero_init=false",
        "input.height=64", "input.width=32", "mixed_precision=false",
    ])  # fmt: skip
    torch.manual_seed(0)
    network = DaalNetwork(config.network, 4, 5, True, config.input).train()
    optim = AdaptOptimConfig(optimizer="adamw", layer_decay=0.7, lr_backbone=1e-3, lr_new=1e-3)
    optimizer = make_optimizer(network, optim)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    normal_BCHW = normalise(drawn_images(folder / "drawn"), network.statistics)
    batch = TrainBatch(normal_BCHW, torch.arange(4), torch.eye(5)[:4], torch.arange(4))
    off = mixed_precision(torch.device("cpu"), wanted=False)
    for _ in range(2):
        terms = train_step(
            network, [batch], optimizer, LossConfig(), torch.zeros(()), lambda flag: None, off
        )
    assert torch.isfinite(terms.total)
    trains = {n: p for n, p in network.named_parameters() if p.requires_grad}
    assert [n for n, p in trains.items() if p.grad is None] == []  # DDP waits for each
    moved = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= trains.keys()
    assert len(moved) > 0.9 * len(trains)  # some gradients are 0, as of a key's shift
    assert len(trains) < len(before)

    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return TrainedModel(config, network.state_dict())


def exports(model: TrainedModel, folder: Path) -> None:
    """Files of each format agree with the model to 1e-4."""
    for format, suffix in SUFFIXES.items():
        assert export(model, format, folder / f"model{suffix}").largest <= 1e-4
