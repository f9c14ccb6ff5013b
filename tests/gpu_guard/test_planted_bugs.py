"""The guard of the training step catches what it is there for: bugs planted one at a time."""

from typing import Any, NamedTuple

import pytest
from planted import planted
from test_training_step import BUDGETS, SMALL, config_of

from benchmarks.fake_cuda import HostWaits
from benchmarks.fake_steps import by_phase, watched_step
from daal import losses, step
from daal.data import augment
from daal.nn import batch_norm, batch_norm_kernels
from daal.nn.heads import ClusterMemory
from daal.teacher import Teacher
from pipelines.training.train_batch import BatchMaker, HostBatch
from pipelines.training.train_state import TrainState


class Bug(NamedTuple):
    owner: Any
    function: str
    old: str
    new: str
    found: str  # in the message
    error: type[Exception] = HostWaits
    recipe: str = "paper"
    settings: tuple[str, ...] = ()
    workers: int = 1


BUGS = {
    "bincount in the memory": Bug(
        *(ClusterMemory, "update"),
        "torch.zeros_like(sums_KC[:, :1]).index_add_(0, labels_T, ones_T1)",
        "torch.bincount(labels_T, minlength=len(sums_KC))[:, None]",
        "update: bincount looks at values",
        recipe="modern",
    ),
    "a look at the norm": Bug(
        *(step, "train_step"),
        "is_bad =",
        "float(norm); is_bad =",
        "check: _local_scalar_dense looks at values",
    ),
    "an error of the norm": Bug(
        *(step, "train_step"),
        "get_total_norm(gradients)",
        "get_total_norm(gradients, error_if_nonfinite=True)",
        "check: .* looks at values",
    ),
    "a synchronisation": Bug(
        *(step, "train_step"),
        "optimizer.step()",
        "torch.cuda.synchronize(); optimizer.step()",
        "a synchronisation at ",
    ),
    "statistics on the host": Bug(
        *(augment, "normalise"),
        "channel_statistics(images_BCHW.device)",
        'channel_statistics(torch.device("cpu"))',
        "two.* devices",
        RuntimeError,
    ),
    "statistics made in each step": Bug(
        *(augment, "normalise"),
        "channel_statistics(",
        "channel_statistics.__wrapped__(",
        r"batch: a blocking copy of \(3,\) torch.float32 from cpu to cuda:0",
    ),
    "labels that are not pinned": Bug(
        *(BatchMaker, "_copied"),
        "pinned(torch.from_numpy(array), self._device)",
        "torch.from_numpy(array)",
        "batch: a copy of .* torch.int.* from memory that isn't pinned",
    ),
    "images that are not pinned": Bug(
        *(BatchMaker, "on_host"),
        "pinned(fed.images_BHWC, self._device)",
        "fed.images_BHWC",
        "batch: a copy of .* torch.uint8 from memory that isn't pinned",
    ),
    "a blocking copy": Bug(
        *(HostBatch, "to"),
        "non_blocking=True",
        "non_blocking=False",
        "batch: a blocking copy of .* from cpu to cuda:0",
    ),
    "an eye on the host": Bug(
        *(losses, "triplet_loss"),
        ", device=labels_B.device",
        "",
        "two.* devices",
        RuntimeError,
        recipe="udap",
    ),
    "an item in a loss": Bug(
        *(losses, "soft_label_loss"),
        "-(weights_BK",
        "-weights_BK.sum().item() * (weights_BK",
        "losses: _local_scalar_dense looks at values",
    ),
    "a boolean mask in a loss": Bug(
        *(losses, "soft_label_loss"),
        "-(weights_BK.float() * log_probabilities_BK)",
        "-(weights_BK.float() * log_probabilities_BK)[weights_BK.sum(1) > 0]",
        "losses: index looks at values",
    ),
    "a boolean mask that is written to": Bug(
        *(losses, "soft_label_loss"),
        "logits_BK.float()",
        "logits_BK.index_put((weights_BK[:, 0] < 0,), logits_BK[0]).float()",
        "losses: a boolean mask is counted",
    ),
    "an index of the host": Bug(
        *(losses, "soft_label_loss"),
        "logits_BK.float()",
        "logits_BK[torch.arange(len(logits_BK))].float()",
        "losses: an index is copied from the host",
    ),
    "a weight from a list": Bug(
        *(losses, "total_loss"),
        "source_weight * source",
        "torch.tensor([source_weight], device=source.device) * source",
        "losses: a blocking copy",
    ),
    "a figure for the log": Bug(
        *(step, "train_step"),
        "found.append(terms.detached())",
        "found.append(terms.detached()); terms.total.cpu()",
        "check: a blocking copy of .* from cuda:0 to cpu",
    ),
    "a teacher that counts on the host": Bug(
        *(Teacher, "follow"),
        "self.is_mean = True",
        "self.is_mean = True; torch.tensor(2).to(means[0].device)",
        r"update: a blocking copy of \(\) torch.int64 from cpu to cuda:0",
        settings=("adapt.teacher_momentum=0.999", "loss.teacher_weight=0.5"),
    ),
    "workers that tell each other how many images they have": Bug(
        *(batch_norm_kernels._Normalise, "forward"),
        "num_workers = ",
        "int(torch.ones((), device=images_BCHW.device)); num_workers = ",
        "forward: _local_scalar_dense looks at values",
        workers=8,
    ),
    "images that are not channels_last": Bug(
        *(augment, "augment"),
        "return normalise(pixels_BHWC.permute(0, 3, 1, 2))",
        "return normalise(pixels_BHWC.permute(0, 3, 1, 2).contiguous())",
        "not channels_last",
        AssertionError,
    ),
    "weights that are not channels_last": Bug(
        *(TrainState, "start"),
        ", memory_format=torch.channels_last",
        "",
        "not channels_last",
        AssertionError,
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_bug(name: str) -> None:
    bug = BUGS[name]
    config = config_of(bug.recipe, *bug.settings, *SMALL, workers=bug.workers)
    with planted(bug.owner, bug.function, bug.old, bug.new):
        with pytest.raises(bug.error, match=bug.found):
            watched_step(config, "adapt", streamed=True)


def assert_over_budget() -> None:
    watch = watched_step(config_of("paper"), "adapt")
    assert by_phase(watch.launches)["all"] > BUDGETS["paper"]


def test_a_loop_over_samples() -> None:
    old = "normalise(pixels_BHWC.permute(0, 3, 1, 2))"
    new = "torch.cat([normalise(x_HWC[None].permute(0, 3, 1, 2)) for x_HWC in pixels_BHWC])"
    with planted(augment, "augment", old, new):
        assert_over_budget()


def test_a_loop_over_parameters() -> None:
    old = "torch.nn.utils.get_total_norm(gradients)"
    new = "torch.stack([gradient.norm() for gradient in gradients]).norm()"
    with planted(step, "train_step", old, new):
        assert_over_budget()


def test_layers_that_count_their_batches() -> None:
    new = "self.num_batches_tracked.add_(self.training); return F.batch_norm("
    with planted(batch_norm.BatchNorm2d, "forward", "return F.batch_norm(", new):
        assert_over_budget()
