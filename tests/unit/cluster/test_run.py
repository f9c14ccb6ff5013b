"""Threads that run the stages."""

import threading
import time

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from waiting import wait_until

from cluster.run import FULL, Threads, by_stage


def fail(*_):
    raise ValueError("broken stage")


def blas_threads():
    return [library["num_threads"] for library in threadpool_info()]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_values_of_blocks_come_in_order(num_threads):
    def late_first(shared, start, stop):
        time.sleep(0.02 if start == 0 else 0)
        return shared, start, stop

    with Threads(num_threads, "cpu") as runner:
        found = runner.run("stage", late_first, [(0, 3), (3, 5), (5, 6)], "shared")
    assert found == [("shared", 0, 3), ("shared", 3, 5), ("shared", 5, 6)]


def test_after_an_error_the_pool_shuts_down_and_waiting_blocks_never_start():
    before, ran = threading.active_count(), []

    def work(number):
        ran.append(number)
        if number == 0:
            raise ValueError("broken stage")
        time.sleep(0.05)

    with pytest.raises(ValueError, match="broken stage"), Threads(2, "cpu") as runner:
        runner.run("stage", work, [(number,) for number in range(1000)])
    assert len(ran) < 100
    wait_until(lambda: threading.active_count() <= before, "a thread outlives the pool")
    with pytest.raises(RuntimeError, match="with block"):
        runner.run("late", int, [()])


@pytest.fixture
def two_threads():
    """For torch and BLAS, whatever the environment says."""
    torch_before = torch.get_num_threads()
    torch.set_num_threads(2)
    with threadpool_limits(2):
        yield
    torch.set_num_threads(torch_before)


@pytest.mark.usefixtures("two_threads")
def test_inside_there_is_one_thread_for_torch_and_blas_and_outside_what_was_before():
    before = blas_threads()
    assert 2 in before
    with Threads(3, "cpu"):
        assert torch.get_num_threads() == 1
        assert set(blas_threads()) == {1}
    assert torch.get_num_threads() == 2
    assert blas_threads() == before
    with pytest.raises(KeyError), Threads(3, "cpu"):
        raise KeyError
    assert torch.get_num_threads() == 2
    assert blas_threads() == before


def test_blocks_on_the_device_come_in_order_with_their_times():
    def seen(number, device, start, stop):
        return number, device, start, stop

    with Threads(2, "cpu:0") as runner:
        found = runner.on_device("block", seen, [(0, 3), (3, 5)], 7)
        stages = by_stage(runner.times())
    assert found == [(7, "cpu:0", 0, 3), (7, "cpu:0", 3, 5)]
    assert stages["block"].num_tasks == 2
    assert runner.notes == []


def test_blocks_without_memory_are_none_and_a_note():
    def full(device, start, stop):
        if start > 0:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with Threads(2, "cpu:0") as runner:
        assert runner.on_device("block", full, [(0, 3), (3, 5), (5, 7)]) is None
        assert runner.notes == [FULL]
        with pytest.raises(ValueError, match="broken stage"):
            runner.on_device("block", fail, [(0, 3)])
