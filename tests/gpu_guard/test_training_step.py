"""The training step of every recipe and technique on a GPU, as far as fake CUDA tensors show it.

The host waits for nothing, no operation meets tensors of two devices, images and weights keep
their layout, the launches of kernels stay within a budget, and a captured step has no host memory
in its graph. Bugs that are planted one at a time show that each of these can fail.
"""

from functools import cache

import pytest
from planted import planted

from benchmarks.fake_cuda import HostWaits
from benchmarks.fake_steps import by_phase, watched_step
from daal import losses, step
from daal.data import augment
from daal.nn import batch_norm, batch_norm_kernels
from daal.nn.heads import ClusterMemory
from pipelines.tools.shipped import read_config, shipped_names
from pipelines.training.train_batch import BatchMaker, HostBatch

# Launches of a step at most, in either stage.
BUDGETS = {
    "demo": 480, "edge": 960, "fast": 670, "modern": 1150, "paper": 780, "ssg": 860, "udap": 710,
    "vit": 1260,
}  # fmt: skip
EIGHT_WORKERS = 1.5  # times the launches of one, at most
# Beside a captured step: copies of a batch's tensors, rates, loss terms and the flag.
BESIDE_THE_GRAPH = 20

# Parts of recipes that others have not, on a small network.
SMALL = ["network.backbone=resnet18", "input.height=64", "input.width=32"]
TEACHER = ["adapt.teacher_momentum=0.999", "loss.teacher_weight=0.5"]
TECHNIQUES = {
    "IBN, smoothed labels, Adam": (
        "paper",
        ["network.ibn=a", "soft_labels.target_labels=lsr", "adapt.optim.optimizer=adam"],
    ),
    "independent attention": ("paper", ["network.attention.mode=independent"]),
    "accumulated": ("paper", ["accumulate=2"]),
    "triplets beside the memory": ("modern", ["loss.triplet_weight=1", "loss.triplet_margin=null"]),
    "no source": ("modern", ["adapt.batch_source=0"]),
    "teacher of stripes": ("ssg", TEACHER),
    "teacher beside the memory": ("modern", TEACHER),
}


def config_of(recipe, *settings, workers=1):
    """Without a CUDA graph, unless `settings` ask for it."""
    given = ["source.root=x", "target.root=x", f"ray.num_workers={workers}"]
    return read_config(recipe, [*given, "ray.cuda_graph=false", *settings])


@cache
def launches(recipe, stage, workers=1):
    # With several workers, the first step also makes constants for each layer.
    watch = watched_step(config_of(recipe, workers=workers), stage, number=int(workers > 1))
    return by_phase(watch.launches)["all"]


def test_every_recipe_has_a_budget():
    assert sorted(BUDGETS) == shipped_names()


@pytest.mark.parametrize(
    ("recipe", "stage"), [("paper", "pretrain"), *((recipe, "adapt") for recipe in BUDGETS)]
)
def test_recipe(recipe, stage):
    assert launches(recipe, stage) <= BUDGETS[recipe]


@pytest.mark.parametrize("recipe", ["paper", "modern"])
def test_eight_workers_that_share_statistics(recipe):
    assert launches(recipe, "adapt", 8) <= EIGHT_WORKERS * launches(recipe, "adapt")


def test_eight_workers_that_compare_images():
    watched_step(config_of("ssg", *SMALL, workers=8), "adapt")


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_technique(technique):
    recipe, settings = TECHNIQUES[technique]
    watched_step(config_of(recipe, *settings, *SMALL), "adapt")


def test_streamed_images():
    watched_step(config_of("paper", "accumulate=2", *SMALL), "adapt", streamed=True)


def captured(recipe, *settings):
    return config_of(recipe, "ray.cuda_graph=auto", "ray.use_gpu=true", *settings, *SMALL)


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        *((recipe, []) for recipe in ("modern", "paper", "ssg", "udap")),  # others are like them
        TECHNIQUES["teacher beside the memory"],
        TECHNIQUES["accumulated"],
    ],
)
def test_a_captured_step__is_one_launch(recipe, settings):
    watch = watched_step(captured(recipe, *settings), "adapt", streamed=not settings, number=1)
    assert watch.launches["replay"]["cuda_graph"] == 1
    assert sum(found.total() for found in watch.launches.values()) <= BESIDE_THE_GRAPH


# Each bug with what is said of it

TO_CHANNELS_FIRST = "normalise(pixels_BHWC.permute(0, 3, 1, 2), statistics)"
COUNT = "torch.zeros_like(sums_KC[:, :1]).index_add_(0, labels_T, ones_T1)"
BUGS = [
    (ClusterMemory, "update", COUNT, "torch.bincount(labels_T, minlength=len(sums_KC))[:, None]",
     "update: bincount looks at values"),
    (step, "train_step", "is_bad =", "float(norm); is_bad =",
     "check: _local_scalar_dense looks at values"),
    (step, "train_step", "optimizer.step()", "torch.cuda.synchronize(); optimizer.step()",
     "a synchronisation at "),
    (BatchMaker, "_copied", "pinned(torch.from_numpy(array), self._device)",
     "torch.from_numpy(array)", "batch: a copy of .* torch.int.* from memory that isn't pinned"),
    (HostBatch, "to", "non_blocking=True", "non_blocking=False",
     "batch: a blocking copy of .* from cpu to cuda:0"),
    (losses, "soft_label_loss", "logits_BK.float()",
     "logits_BK.index_put((weights_BK[:, 0] < 0,), logits_BK[0]).float()",
     "losses: a boolean mask is counted"),
    (losses, "soft_label_loss", "logits_BK.float()",
     "logits_BK[torch.arange(len(logits_BK))].float()",
     "losses: an index is copied from the host"),
    (augment, "augment", TO_CHANNELS_FIRST, f"{TO_CHANNELS_FIRST}.contiguous()",
     "not channels_last"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("owner", "function", "old", "new", "found"), BUGS, ids=[bug[-1] for bug in BUGS]
)
def test_planted_bug(owner, function, old, new, found):
    recipe = "modern" if owner is ClusterMemory else "paper"
    with planted(owner, function, old, new), pytest.raises(Exception, match=found) as raised:
        watched_step(config_of(recipe, *SMALL), "adapt", streamed=True)
    assert raised.type in (HostWaits, AssertionError)


def test_planted_bug__workers_that_tell_each_other_how_many_images_they_have():
    new = "int(torch.ones((), device=images_BCHW.device)); num_workers = "
    with planted(batch_norm_kernels._Normalise, "forward", "num_workers = ", new):
        with pytest.raises(HostWaits, match="forward: _local_scalar_dense looks at values"):
            watched_step(config_of("paper", *SMALL, workers=8), "adapt")


@pytest.mark.parametrize(
    ("owner", "function", "old", "new"),
    [
        (augment, "augment", TO_CHANNELS_FIRST,
         "torch.cat([normalise(x_HWC[None].permute(0, 3, 1, 2), statistics) "
         "for x_HWC in pixels_BHWC])"),
        (batch_norm.BatchNorm2d, "forward", "return F.batch_norm(",
         "self.num_batches_tracked.add_(self.training); return F.batch_norm("),
    ],
    ids=["a loop over images", "layers that count their batches"],
)  # fmt: skip
def test_planted_bug__over_budget(owner, function, old, new):
    with planted(owner, function, old, new):
        watch = watched_step(config_of("paper"), "adapt")
    assert by_phase(watch.launches)["all"] > BUDGETS["paper"]


@pytest.mark.parametrize(
    ("owner", "function", "old", "new"),
    [
        (step, "train_step", "optimizer.step()",
         'terms.total.to("cpu", non_blocking=True); optimizer.step()'),
        (augment, "normalise", "channel_statistics(images_BCHW.device, statistics)",
         "channel_statistics.__wrapped__(images_BCHW.device, statistics)"),
    ],
    ids=["a copy that none waits for", "a constant of the host"],
)  # fmt: skip
def test_planted_bug__host_memory_in_a_graph(owner, function, old, new):
    with planted(owner, function, old, new):
        with pytest.raises(HostWaits, match="in a CUDA graph reads the host's memory"):
            watched_step(captured("paper"), "adapt")
