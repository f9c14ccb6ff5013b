"""A step as a CUDA graph: what the host still launches, and that no host memory is in the graph."""

import pytest
from planted import planted
from test_training_step import SMALL, TECHNIQUES, config_of

from benchmarks.fake_cuda import HostWaits
from benchmarks.fake_steps import watched_step
from daal import step
from daal.config import Config

# Copies of a batch's tensors, rates, loss terms and the flag.
BESIDE_THE_GRAPH = 20


def captured(recipe: str, *settings: str) -> Config:
    return config_of(recipe, "ray.cuda_graph=auto", "ray.use_gpu=true", *settings, *SMALL)


def assert_one_launch(config: Config, streamed: bool = False) -> None:
    watch = watched_step(config, "adapt", streamed, number=1)
    assert watch.launches["replay"]["cuda_graph"] == 1
    assert sum(found.total() for found in watch.launches.values()) <= BESIDE_THE_GRAPH


@pytest.mark.parametrize("recipe", ["modern", "paper", "ssg", "udap"])  # the others are like them
def test_recipe(recipe: str) -> None:
    assert_one_launch(captured(recipe), streamed=True)


@pytest.mark.parametrize("technique", ["teacher beside the memory", "accumulated"])
def test_technique(technique: str) -> None:
    recipe, settings = TECHNIQUES[technique]
    assert_one_launch(captured(recipe, *settings))


def test_planted_bug__a_copy_that_none_waits_for() -> None:
    """It is right in a step that isn't captured."""
    new = 'terms.total.to("cpu", non_blocking=True); optimizer.step()'
    with planted(step, "train_step", "optimizer.step()", new):
        watched_step(config_of("paper", *SMALL), "adapt")
        with pytest.raises(HostWaits, match="in a CUDA graph reads the host's memory"):
            watched_step(captured("paper"), "adapt")
