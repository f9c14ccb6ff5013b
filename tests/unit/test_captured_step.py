"""Which steps are captured, and that replayed ones equal steps that run as they are, to the bit."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recorded_graph import RecordedGraph
from small_training import CASES, CPU, STEPS, Training, config_of, same

from daal.captured_step import CapturedStep
from daal.errors import ClusterError
from daal.load_config import load_config
from pipelines.training import step_function as steps
from pipelines.training.step_function import is_captured, step_function


@pytest.mark.parametrize(
    ("device", "world_size", "settings", "captured"),
    [
        ("cuda", 1, [], True),
        ("cuda", 2, [], False),
        ("cuda", 2, ["ray.cuda_graph=true", "ray.use_gpu=true"], True),
        ("cuda", 1, ["ray.cuda_graph=false"], False),
        ("cpu", 1, [], False),
    ],
)
def test_which_workers_capture(device, world_size, settings, captured):
    worker = SimpleNamespace(device=torch.device(device), world_size=world_size)
    assert is_captured(worker, load_config(None, settings)) == captured


def test_a_capture_that_fails__is_noted_by_auto__and_ends_what_asked_for_it(monkeypatch):
    said = []
    error = RuntimeError("operation not permitted\nwhen stream is capturing")

    def failed(config):
        worker = SimpleNamespace(log=said.append, device=CPU, world_size=1)
        state = SimpleNamespace(stage="pretrain", worker=worker, distributed=lambda: None)
        step_function(state, None, config)

    monkeypatch.setattr(steps, "is_captured", lambda *_: True)
    monkeypatch.setattr(steps, "CudaGraph", lambda: RecordedGraph(list))
    monkeypatch.setattr(steps, "CapturedStep", lambda *given: given[-1](error))
    failed(load_config(None))
    assert "can't be captured as a CUDA graph (operation not permitted)" in said[0]["note"]
    with pytest.raises(ClusterError, match="not permitted.*set ray.cuda_graph=false"):
        failed(load_config(None, ["ray.cuda_graph=true", "ray.use_gpu=true"]))


WARM_UP = 2


def never(error):
    raise AssertionError("the capture has failed") from error


def captured(training, on_failure=never):
    graph = RecordedGraph(lambda: list(training.everything().values()))
    return CapturedStep(training.take, CPU, graph, WARM_UP, on_failure), graph


def differences(one, other):
    """Names of what isn't the same to the bit."""
    ours, theirs = one.everything(), other.everything()
    assert ours.keys() == theirs.keys()
    names = [name for name, tensor in ours.items() if not same(tensor, theirs[name])]
    for step, terms in enumerate(zip(one.terms, other.terms, strict=True)):
        found, expected = (np.array(list(some.values())) for some in terms)
        if found.tobytes() != expected.tobytes():
            names.append(f"terms of step {step}")
    return names


@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_equal_eager_ones_to_the_bit(case):
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


def test_a_step_that_diverges__leaves_the_weights_and_its_own_terms():
    eager, replayed = (Training(config_of("paper")) for _ in range(2))
    eager.run(eager.take, poisoned=5)
    step, graph = captured(replayed)
    replayed.run(step, poisoned=5)
    assert graph.num_replays and float(replayed.diverged) == 1
    assert differences(replayed, eager) == []
    assert [np.isnan(terms["total"]) for terms in replayed.terms] == [False] * 5 + [True, False]


def test_other_shapes_are_refused():
    training = Training(config_of("paper"))
    step, _ = captured(training)
    training.run(step)
    parts = training.parts(0)
    with pytest.raises(ValueError, match="shapes it was captured with"):
        step([parts[0]._replace(images_BHWC=parts[0].images_BHWC[1:])])
    with pytest.raises(ValueError, match="shapes it was captured with"):
        step([parts[0]._replace(features_TC=None)])


def test_what_waits_for_the_device__is_not_captured__but_trained_on():
    eager, replayed = (Training(config_of("paper")) for _ in range(2))
    eager.run(eager.take)
    take, told = replayed.take, list[RuntimeError]()

    def waiting(parts):
        terms = take(parts)
        assert not np.isnan(terms.total.item())
        return terms

    replayed.take = waiting
    step, graph = captured(replayed, told.append)
    replayed.run(step)
    assert "waits for the device" in str(told[0]) and len(told) == 1
    assert graph.num_replays == 0
    assert differences(replayed, eager) == []
