"""A training of the whole step on a CPU: a small network, drawn pixels, labels of five clusters."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from daal import checkpoint
from daal.config import Config, FitConfig
from daal.load_config import load_config
from daal.losses import LossTerms
from daal.optimizer import make_optimizer, set_learning_rate
from daal.precision import mixed_precision
from daal.step import train_step
from daal.teacher import Teacher
from pipelines.images.stream import FedBatch
from pipelines.tools.shipped import RECIPES
from pipelines.training.train_batch import BatchMaker, HostBatch, Labels
from pipelines.training.train_loop import build_network
from pipelines.training.train_state import TrainState, Weights

CPU = torch.device("cpu")
SMALL = [
    "network.backbone=resnet18", "network.weights=none", "input.height=32", "input.width=16",
    "augment.pad=2", "mixed_precision=false", "adapt.batch_source=4", "adapt.batch_target=8",
    "adapt.steps_per_epoch=3", "adapt.optim.decay_at_epochs=[1, 2]", "ray.num_workers=1",
    "pretrain.batch_source=4",
]  # fmt: skip
CASES = {
    "paper": ("paper", []),
    "paper, accumulate=2": ("paper", ["accumulate=2"]),
    "paper, teacher": ("paper", ["adapt.teacher_momentum=0.9", "loss.teacher_weight=0.5"]),
    "modern": ("modern", []),
    "udap": ("udap", []),
}
STEPS = 7


def config_of(case: str) -> Config:
    recipe, settings = CASES[case]
    return load_config(RECIPES / f"{recipe}.yaml", [*SMALL, *settings])


def labels(num_stripes: int) -> Labels:
    draw = np.random.default_rng(0)
    clusters = np.arange(40) // 8
    return Labels(
        np.arange(12) % 3,
        3,
        clusters,
        draw.standard_normal((40, 512)).astype(np.float32),
        draw.standard_normal((5, 512)).astype(np.float32),
        np.tile(clusters[:, None], num_stripes) if num_stripes else None,
    )


class Training:
    """One worker's training, as `pipelines.training.train_loop` runs it."""

    def __init__(
        self,
        config: Config,
        known: Labels | None = None,
        fit: FitConfig | None = None,
        iteration: int = 1,
        start: Weights | None = None,
    ) -> None:
        known = known or labels(config.network.stripes)
        fit = fit or config.adapt
        self.config = config
        self.terms: list[dict[str, float]] = []
        self.maker = BatchMaker(known, config, iteration, CPU)
        self.network = build_network(config, known, start or {})
        momentum = fit.teacher_momentum
        self.teacher = Teacher(self.network, momentum) if momentum else None
        self.network.train()
        self.optimizer = make_optimizer(self.network, fit.optim, capturable=True)
        self.diverged = torch.zeros(())

    def take(self, parts: Sequence[HostBatch]) -> LossTerms:
        return train_step(
            self.network,
            [self.maker.on_device(part) for part in parts],
            self.optimizer,
            self.config.loss,
            self.diverged,
            agree=lambda _: None,
            autocast=mixed_precision(CPU, False),
            teacher=self.teacher,
        )

    def everything(self) -> dict[str, Tensor]:
        return kept_by(self)

    def parts(self, step: int, poisoned: bool = False) -> list[HostBatch]:
        draw, fit = np.random.default_rng(step), self.config.adapt
        source, target = draw.permutation(12)[: fit.batch_source], draw.permutation(40)
        size = (fit.batch_source + fit.batch_target, 32, 16, 3)
        images = torch.from_numpy(draw.integers(0, 256, size, np.uint8))
        fed = FedBatch(step, images, source, target[: fit.batch_target])
        parts = [
            self.maker.on_host(fed.part(at, self.config.accumulate), step // 3)
            for at in range(self.config.accumulate)
        ]
        if poisoned:
            assert parts[0].features_TC is not None
            parts[0].features_TC.fill_(torch.nan)
        return parts

    def run(self, take: Callable[[Sequence[HostBatch]], LossTerms], poisoned: int = -1) -> None:
        kept = []
        for step in range(STEPS):
            set_learning_rate(self.optimizer, self.config.adapt, step, 3)
            kept.append(take(self.parts(step, step == poisoned)))
        self.terms = [terms.as_dict() for terms in kept]


def same(one: Tensor, other: Tensor) -> bool:
    return one.detach().numpy().tobytes() == other.detach().numpy().tobytes()


def kept_by(state: "Training | TrainState") -> dict[str, Tensor]:
    """By reference, all that a step changes."""
    tensors = dict(state.network.state_dict(keep_vars=True))
    tensors |= checkpoint.optimizer_tensors(state.optimizer, state.network.named_parameters())
    if state.teacher is not None:
        tensors |= {f"teacher.{n}": t for n, t in state.teacher.state_dict().items()}
    return tensors | {"diverged": state.diverged}
