"""Replayed steps equal steps that run as they are, to the bit; and what would show if not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from recorded_graph import RecordedGraph
from torch import Tensor

from daal import captured_step, checkpoint
from daal.captured_step import CapturedStep
from daal.config import Config
from daal.load_config import load_config
from daal.losses import LossTerms
from daal.optimizer import make_optimizer, set_learning_rate
from daal.step import make_teacher, mixed_precision, train_step
from pipelines.shipped import RECIPES
from pipelines.stream import FedBatch
from pipelines.train_batch import BatchMaker, HostBatch, Labels
from pipelines.train_loop import build_network

CPU = torch.device("cpu")
SMALL = [
    "network.backbone=resnet18", "network.weights=none", "input.height=32", "input.width=16",
    "augment.pad=2", "mixed_precision=false", "adapt.batch_source=4", "adapt.batch_target=8",
    "adapt.steps_per_epoch=3", "adapt.optim.warmup_steps=6", "ray.num_workers=1",
    "pretrain.batch_source=4",
]  # fmt: skip
CASES = {
    "paper": ("paper", []),
    "paper, accumulate=2": ("paper", ["adapt.accumulate=2"]),
    "paper, teacher": ("paper", ["adapt.teacher_momentum=0.9", "loss.teacher_weight=0.5"]),
    "modern": ("modern", []),
    "udap": ("udap", []),
}
WARM_UP, STEPS = 2, 7


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


@dataclass
class Training:
    """One worker's training, as `pipelines.train_loop` runs it."""

    config: Config
    capturable: bool = True
    terms: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        config, known = self.config, labels(self.config.network.stripes)
        self.maker = BatchMaker(known, config, 1, CPU)
        self.network = build_network(config, known, {})
        self.teacher = make_teacher(self.network, config.adapt.teacher_momentum)
        self.network.train()
        self.optimizer = make_optimizer(self.network, config.adapt.optim, self.capturable)
        self.diverged = torch.zeros(())

    def take(self, parts: Sequence[HostBatch]) -> LossTerms:
        return train_step(
            self.network,
            [self.maker.on_device(part) for part in parts],
            *(self.optimizer, self.config.loss, self.diverged, lambda _: None),
            *(mixed_precision(CPU, False), self.teacher),
        )

    def everything(self) -> dict[str, Tensor]:
        """By reference, all that a step changes."""
        tensors = dict(self.network.state_dict(keep_vars=True))
        tensors |= checkpoint.optimizer_tensors(self.optimizer, self.network.named_parameters())
        if self.teacher is not None:
            tensors |= {f"teacher.{n}": t for n, t in self.teacher.state_dict().items()}
        return tensors | {"diverged": self.diverged}

    def parts(self, step: int, poisoned: bool = False) -> list[HostBatch]:
        draw, fit = np.random.default_rng(step), self.config.adapt
        source, target = draw.permutation(12)[: fit.batch_source], draw.permutation(40)
        size = (fit.batch_source + fit.batch_target, 32, 16, 3)
        images = torch.from_numpy(draw.integers(0, 256, size, np.uint8))
        fed = FedBatch(step, images, source, target[: fit.batch_target])
        parts = [
            self.maker.on_host(fed.part(at, fit.accumulate), step // 3)
            for at in range(fit.accumulate)
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


def never(error: RuntimeError) -> None:
    raise AssertionError("the capture has failed") from error


def captured(
    training: Training, on_failure: Callable[[RuntimeError], None] = never
) -> tuple[CapturedStep[HostBatch], RecordedGraph]:
    graph = RecordedGraph(lambda: list(training.everything().values()))
    return CapturedStep(training.take, CPU, graph, WARM_UP, on_failure), graph


def differences(one: Training, other: Training) -> list[str]:
    """Names of what isn't the same to the bit."""
    ours, theirs = one.everything(), other.everything()
    assert ours.keys() == theirs.keys()
    names = [name for name, tensor in ours.items() if not same(tensor, theirs[name])]
    for step, terms in enumerate(zip(one.terms, other.terms, strict=True)):
        found, expected = (np.array(list(some.values())) for some in terms)
        if found.tobytes() != expected.tobytes():
            names.append(f"terms of step {step}")
    return names


def same(one: Tensor, other: Tensor) -> bool:
    return one.detach().numpy().tobytes() == other.detach().numpy().tobytes()


@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_equal_eager_ones_to_the_bit(case: str) -> None:
    eager, replayed = (Training(config_of(case)) for _ in range(2))
    start = {name: tensor.detach().clone() for name, tensor in eager.everything().items()}
    eager.run(eager.take)
    step, graph = captured(replayed)
    replayed.run(step)
    assert (graph.num_warm_ups, graph.num_captures, graph.num_replays) == (2, 1, STEPS - 2)
    assert differences(replayed, eager) == []
    assert len({terms["total"] for terms in eager.terms}) == STEPS
    unchanged = [name for name, tensor in start.items() if same(tensor, eager.everything()[name])]
    assert "backbone.conv1.weight" not in unchanged and "backbone.bn1.running_mean" not in unchanged


def test_a_step_that_diverges__leaves_the_weights_and_its_own_terms() -> None:
    eager, replayed = (Training(config_of("paper")) for _ in range(2))
    eager.run(eager.take, poisoned=5)
    step, graph = captured(replayed)
    replayed.run(step, poisoned=5)
    assert graph.num_replays and float(replayed.diverged) == 1
    assert differences(replayed, eager) == []
    assert [np.isnan(terms["total"]) for terms in replayed.terms] == [False] * 5 + [True, False]


def test_other_shapes_are_refused() -> None:
    training = Training(config_of("paper"))
    step, _ = captured(training)
    training.run(step)
    parts = training.parts(0)
    with pytest.raises(ValueError, match="shapes it was captured with"):
        step([parts[0]._replace(images_BHWC=parts[0].images_BHWC[1:])])
    with pytest.raises(ValueError, match="shapes it was captured with"):
        step([parts[0]._replace(features_TC=None)])


# ---- What must not be -------------------------------------------------------------------


def test_what_waits_for_the_device__is_not_captured__but_trained_on() -> None:
    eager, replayed = (Training(config_of("paper")) for _ in range(2))
    eager.run(eager.take)
    take, told = replayed.take, list[RuntimeError]()

    def waiting(parts: Sequence[HostBatch]) -> LossTerms:
        terms = take(parts)
        assert not np.isnan(terms.total.item())
        return terms

    replayed.take = waiting  # type: ignore[method-assign]
    step, graph = captured(replayed, told.append)
    replayed.run(step)
    assert "waits for the device" in str(told[0]) and len(told) == 1
    assert graph.num_replays == 0
    assert differences(replayed, eager) == []


def test_a_rate_that_is_a_number__would_be_seen() -> None:
    eager, replayed = (Training(config_of("paper"), capturable=False) for _ in range(2))
    eager.run(eager.take)
    replayed.run(captured(replayed)[0])
    assert "backbone.conv1.weight" in differences(replayed, eager)


def test_a_batch_that_is_not_copied__would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    eager, replayed = (Training(config_of("paper")) for _ in range(2))
    eager.run(eager.take)
    fill, tables = captured_step.fill, list[Tensor]()

    def with_the_first_table(
        places: Sequence[Tensor | None], part: Sequence[Tensor | None]
    ) -> None:
        table_BX = part[1]
        assert table_BX is not None
        tables.append(table_BX)
        fill(places, [part[0], tables[0], *part[2:]])

    monkeypatch.setattr(captured_step, "fill", with_the_first_table)
    replayed.run(captured(replayed)[0])
    found = differences(replayed, eager)
    assert "terms of step 2" not in found and "terms of step 3" in found


def test_terms_of_the_graph_itself__would_be_those_of_a_later_step() -> None:
    eager, replayed = (Training(config_of("paper")) for _ in range(2))
    eager.run(eager.take)
    step, _ = captured(replayed)

    def uncopied(parts: Sequence[HostBatch]) -> LossTerms:
        terms = step(parts)
        if step._terms_L is None:
            return terms
        return LossTerms(**dict(zip(step._names, step._terms_L.unbind(), strict=True)))

    replayed.run(uncopied)
    assert differences(replayed, eager) == [f"terms of step {step}" for step in range(2, 6)]
