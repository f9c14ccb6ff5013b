"""A whole training of captured steps gives what an eager one gives."""

from types import SimpleNamespace

import numpy as np
import pytest
import ray
import ray.train
import torch
from recorded_graph import RecordedGraph
from small_training import CPU, SMALL, kept_by, labels, same

from daal.data.plan import Plan
from daal.load_config import load_config
from pipelines.images.pixels import ImageSource
from pipelines.images.stream import StreamSource
from pipelines.tools.shipped import RECIPES
from pipelines.training import step_function as steps
from pipelines.training import train_loop, train_state
from pipelines.training.checkpoint_writer import CheckpointWriter
from pipelines.training.train_loop import FitJob
from pipelines.training.train_state import TrainState


def fit_job(stage, config, plan, known):
    everything_kept = ImageSource(None, (), np.arange(40))
    stream = StreamSource(plan, everything_kept, everything_kept, config.input)
    return FitJob(stage, config, config.adapt, 1, stream, known, {})


@pytest.mark.parametrize("settings", [[], ["accumulate=2", "adapt.teacher_momentum=0.9"]])
def test_a_whole_fit__the_weights_and_checkpoints_of_an_eager_one(settings, monkeypatch):
    """Three epochs of three steps, of which the first two are a warm-up."""
    config = load_config(
        RECIPES / "paper.yaml",
        [*SMALL, "adapt.epochs=3", "checkpoint_every_epochs=1", *settings],
    )
    eager, graphs = run(config, False, monkeypatch)
    assert not graphs
    replayed, graphs = run(config, True, monkeypatch)
    assert [graph.num_replays for graph in graphs] == [7]
    assert len(eager) == len(replayed) == 4
    for ours, theirs in zip(replayed, eager, strict=True):
        assert ours.keys() == theirs.keys()
        assert [name for name, tensor in ours.items() if not same(tensor, theirs[name])] == []


def run(config, captured, monkeypatch):
    """Its checkpoints, its weights at the end, and the graphs that it made."""
    draw, rows, fit = np.random.default_rng(0), np.arange(40), config.adapt
    images = torch.from_numpy(draw.integers(0, 256, (40, 32, 16, 3), np.uint8))
    reader = SimpleNamespace(device=CPU, on_device=False, read=lambda rows: images[rows])
    plan = Plan(
        *(0, 1, fit.epochs, fit.batch_source, fit.batch_target, rows[:12], rows, rows),
        steps_per_epoch=3,
        num_parts=config.accumulate,
    )
    saved, graphs, states = [], [], []
    start, make_optimizer = TrainState.start, train_state.make_optimizer

    def started(*given):
        states.append(start(*given))
        return states[0]

    def graph():
        graphs.append(RecordedGraph(lambda: list(kept_by(states[0]).values())))
        return graphs[-1]

    def begin(_, step, tensors, optimizer):
        saved.append({n: t.detach().clone() for n, t in (tensors | optimizer).items()})

    worker = SimpleNamespace(
        rank=0, world_size=1, device=CPU, reach=lambda *_: None, log=lambda _: None,
        node_leaves=lambda: False,
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(train_loop, "pixel_reader", lambda *_: reader)
        patch.setattr(ray, "get", lambda value: value)
        patch.setattr(ray.train, "get_checkpoint", lambda: None)
        patch.setattr(TrainState, "start", started)
        patch.setattr(
            train_state, "make_optimizer", lambda *of: make_optimizer(*of, capturable=True)
        )
        patch.setattr(CheckpointWriter, "begin", begin)
        patch.setattr(steps, "is_captured", lambda *_: captured)
        patch.setattr(steps, "CudaGraph", graph)
        patch.setattr(steps, "WARM_UP", 2)
        weights, _ = fit_job("fit", config, plan, labels(0)).run(worker)
    return [*saved, {n: torch.from_numpy(w) for n, w in weights.items()}], graphs
