"""The training step of every recipe and technique on a GPU, as far as fake CUDA tensors show it.

The host waits for nothing, no operation meets tensors of two devices, images and weights keep
their layout, and the launches of kernels stay within a budget.
"""

from functools import cache

import pytest

from benchmarks.fake_steps import Stage, by_phase, watched_step
from daal.config import Config
from pipelines.tools.shipped import read_config, shipped_names

# Launches of a step at most, in either stage.
BUDGETS = {"demo": 480, "fast": 670, "modern": 1150, "paper": 780, "ssg": 860, "udap": 710}
EIGHT_WORKERS = 1.5  # times the launches of one, at most

# Parts of recipes that others have not, on a small network.
SMALL = ["network.backbone=resnet18", "input.height=64", "input.width=32"]
TECHNIQUES = {
    "IBN, smoothed labels, Adam": (
        "paper",
        ["network.ibn=a", "soft_labels.target_labels=lsr", "adapt.optim.optimizer=adam"],
    ),
    "independent attention": ("paper", ["network.attention.mode=independent"]),
    "accumulated": ("paper", ["accumulate=2"]),
    "triplets beside the memory": ("modern", ["loss.triplet_weight=1", "loss.triplet_margin=null"]),
    "no source": ("modern", ["adapt.batch_source=0"]),
    "teacher of stripes": ("ssg", ["adapt.teacher_momentum=0.999", "loss.teacher_weight=0.5"]),
    "teacher beside the memory": (
        "modern",
        ["adapt.teacher_momentum=0.999", "loss.teacher_weight=0.5"],
    ),
}


def config_of(recipe: str, *settings: str, workers: int = 1) -> Config:
    """Without a CUDA graph, unless `settings` ask for it."""
    given = ["source.root=x", "target.root=x", f"ray.num_workers={workers}"]
    return read_config(recipe, [*given, "ray.cuda_graph=false", *settings])


@cache
def launches(recipe: str, stage: Stage, workers: int = 1) -> int:
    # Of several workers, the first step also makes constants for each layer.
    watch = watched_step(config_of(recipe, workers=workers), stage, number=int(workers > 1))
    return by_phase(watch.launches)["all"]


def test_every_recipe_has_a_budget() -> None:
    assert sorted(BUDGETS) == shipped_names()


@pytest.mark.parametrize(
    ("recipe", "stage"), [("paper", "pretrain"), *((recipe, "adapt") for recipe in BUDGETS)]
)
def test_recipe(recipe: str, stage: Stage) -> None:
    assert launches(recipe, stage) <= BUDGETS[recipe]


@pytest.mark.parametrize("recipe", ["paper", "modern"])
def test_eight_workers_that_share_statistics(recipe: str) -> None:
    assert launches(recipe, "adapt", 8) <= EIGHT_WORKERS * launches(recipe, "adapt")


def test_eight_workers_that_compare_images() -> None:
    watched_step(config_of("ssg", *SMALL, workers=8), "adapt")


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_technique(technique: str) -> None:
    recipe, settings = TECHNIQUES[technique]
    watched_step(config_of(recipe, *settings, *SMALL), "adapt")


def test_streamed_images() -> None:
    watched_step(config_of("paper", "accumulate=2", *SMALL), "adapt", streamed=True)
