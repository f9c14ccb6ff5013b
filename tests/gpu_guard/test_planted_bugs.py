"""The guard of the training step catches what it is there for: bugs planted one at a time."""

from typing import Any, NamedTuple

import pytest
from planted import planted
from test_training_step import BUDGETS, SMALL, config_of

from benchmarks.fake_cuda import HostWaits
from benchmarks.fake_steps import by_phase, watched_step
from daal import losses, step
from daal.data import augment
from daal.nn import batch_norm
from daal.nn.heads import ClusterMemory
from pipelines.training.train_batch import BatchMaker, HostBatch


class Bug(NamedTuple):
    owner: Any
    function: str
    old: str
    new: str
    found: str  # in the message
    error: type[Exception] = HostWaits
    recipe: str = "paper"


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
    "a synchronisation": Bug(
        *(step, "train_step"),
        "optimizer.step()",
        "torch.cuda.synchronize(); optimizer.step()",
        "a synchronisation at ",
    ),
    "labels that are not pinned": Bug(
        *(BatchMaker, "_copied"),
        "pinned(torch.from_numpy(array), self._device)",
        "torch.from_numpy(array)",
        "batch: a copy of .* torch.int.* from memory that isn't pinned",
    ),
    "a blocking copy": Bug(
        *(HostBatch, "to"),
        "non_blocking=True",
        "non_blocking=False",
        "batch: a blocking copy of .* from cpu to cuda:0",
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
    "images that are not channels_last": Bug(
        *(augment, "augment"),
        "return normalise(pixels_BHWC.permute(0, 3, 1, 2))",
        "return normalise(pixels_BHWC.permute(0, 3, 1, 2).contiguous())",
        "not channels_last",
        AssertionError,
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_bug(name: str) -> None:
    bug = BUGS[name]
    config = config_of(bug.recipe, *SMALL)
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


def test_layers_that_count_their_batches() -> None:
    new = "self.num_batches_tracked.add_(self.training); return F.batch_norm("
    with planted(batch_norm.BatchNorm2d, "forward", "return F.batch_norm(", new):
        assert_over_budget()
