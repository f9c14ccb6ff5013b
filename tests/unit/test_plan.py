"""The plan: which images are read when."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daal.data.plan import Plan


def make(seed=0, num_source=50, num_target=70, **changes):
    labels = np.arange(num_target) // 5
    settings = {
        "seed": seed, "iteration": 1, "epochs": 3, "batch_source": 6, "batch_target": 12,
        "source_rows": np.arange(num_source), "target_rows": np.arange(100, 100 + num_target),
        "target_labels": labels, **changes,
    }  # fmt: skip
    return Plan(**settings)


def test_one_epoch_is_one_pass_over_the_target():
    plan = make()
    assert plan.steps_per_epoch == 70 // 12
    assert plan.num_steps == 3 * plan.steps_per_epoch
    seen = np.concatenate([plan.batch(step).target for step in range(plan.steps_per_epoch)])
    assert len(np.unique(seen)) == len(seen)
    assert set(seen) <= set(range(100, 170))


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), world_size=st.sampled_from([1, 2, 3, 6]), step=st.integers(0, 14))
def test_shares_make_up_the_global_batch(seed, world_size, step):
    batch = make(seed).batch(step)
    shares = [batch.share(rank, world_size) for rank in range(world_size)]
    for side in ("source", "target"):
        parts = [getattr(share, side) for share in shares]
        assert len({len(part) for part in parts}) == 1
        assert sorted(np.concatenate(parts)) == sorted(getattr(batch, side))


def test_any_step_can_be_computed_alone_and_in_any_order():
    forwards = [make(3).batch(step) for step in range(10)]
    plan = make(3)
    for step in reversed(range(10)):
        again = plan.batch(step)
        assert np.array_equal(again.source, forwards[step].source)
        assert np.array_equal(again.target, forwards[step].target)


def test_seed_iteration_and_epoch_change_the_order():
    first = make(0).batch(0).target
    assert not np.array_equal(first, make(1).batch(0).target)
    assert not np.array_equal(first, make(0, iteration=2).batch(0).target)
    assert not np.array_equal(first, make(0).batch(make(0).steps_per_epoch).target)


def test_fewer_images_than_a_batch_are_repeated():
    batch = make(num_source=4, num_target=5).batch(0)
    assert len(batch.source) == 6
    assert set(batch.source) == {0, 1, 2, 3}
    assert np.bincount(batch.target - 100).min() >= 2


def test_identity_batches__k_images_of_each():
    plan = make(images_per_id=4)
    for step in range(plan.num_steps):
        labels = (plan.batch(step).target - 100) // 5
        assert (np.bincount(labels)[np.unique(labels)] % 4 == 0).all()


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_parts_of_identity_batches__all_images_of_an_identity_whatever_the_workers(
    world_size, num_parts
):
    plan = make(batch_source=24, batch_target=48, images_per_id=3, num_parts=num_parts)
    batch = plan.batch(0)
    shares = [batch.share(rank, world_size) for rank in range(world_size)]
    for side in ("source", "target"):
        parts = [np.split(getattr(share, side), num_parts) for share in shares]
        whole = np.concatenate([np.stack(part, 1).ravel() for part in zip(*parts, strict=True)])
        assert np.array_equal(whole, getattr(batch, side)), "not the same parts on all workers"
    for part in np.split(batch.target, num_parts):
        ids, counts = np.unique((part - 100) // 5, return_counts=True)
        assert len(ids) > 1 and (counts % 3 == 0).all()
