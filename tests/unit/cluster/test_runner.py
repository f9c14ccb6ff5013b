"""Threads that run the stages."""

import gc
import threading
import time
import weakref
from contextlib import suppress

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from waiting import wait_until

from cluster.device import is_out_of_memory
from cluster.run import FULL, TaskTime, Threads, by_stage


def add(*numbers):
    return sum(numbers)


def fail(*_):
    raise ValueError("broken stage")


def blas_threads():
    return [library["num_threads"] for library in threadpool_info()]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_tasks_wait_for_what_they_need(num_threads):
    with Threads(num_threads, "cpu") as runner:
        slow = runner.submit("slow", lambda: time.sleep(0.05) or 1)
        chain = [runner.submit("add", add, slow, slow, 1)]
        for _ in range(50):
            chain.append(runner.submit("add", add, chain[-1], 1))
        assert runner.collect([chain[-1], slow, 7]) == [53, 1, 7]


def test_tasks_that_wait_hold_no_thread():
    """If one did, the last task would find both threads taken, and the first would wait for it."""
    started = threading.Event()
    with Threads(2, "cpu") as runner:
        first = runner.submit("wait", started.wait)
        later = [runner.submit("add", add, first, number) for number in range(100)]
        runner.submit("start", started.set)
        assert runner.collect([first, *later]) == [True, *range(1, 101)]


def test_a_task_may_have_several_results():
    with Threads(2, "cpu") as runner:
        quotient, rest = runner.submit("divide", divmod, 17, 5, num_results=2)
        total = runner.submit("add", add, quotient, rest)
        assert runner.collect([quotient, rest, total]) == [3, 2, 5]


def test_shared_values_are_arguments_like_others():
    with Threads(2, "cpu") as runner:
        shared = runner.share(5)
        assert runner.collect([runner.submit("add", add, shared, shared), shared]) == [10, 5]


@pytest.mark.parametrize("num_results", [1, 2])
def test_an_error_in_a_task_reaches_collect_through_all_that_need_it(num_results):
    with Threads(2, "cpu") as runner:
        broken = runner.submit("fail", fail, num_results=num_results)
        broken = broken if num_results == 1 else broken[1]
        last = runner.submit("add", add, runner.submit("add", add, broken, 1), 1)
        with pytest.raises(ValueError, match="broken stage"):
            runner.collect([last])


def test_after_an_error_the_pool_shuts_down_and_waiting_tasks_never_start():
    before, ran = threading.active_count(), []

    def is_closed():
        with suppress(RuntimeError):
            runner.submit("late", int)
            return False
        return True

    with pytest.raises(ValueError, match="broken stage"):
        with Threads(2, "cpu") as runner:
            slow = runner.submit("slow", wait_until, is_closed, "the pool stays open")
            runner.submit("after", ran.append, slow)
            runner.collect([runner.submit("fail", fail)])
    assert slow.done() and ran == []
    wait_until(lambda: threading.active_count() <= before, "a thread outlives the pool")


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


def test_as_many_workers_as_torch_uses():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert Threads().num_workers == 3
        assert Threads(5).num_workers == 5
    finally:
        torch.set_num_threads(before)


def test_device_is_a_gpu_if_there_is_one():
    assert Threads().device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert Threads(device="cpu").device == "cpu"


def test_blocks_on_the_device_come_in_order_with_their_times():
    def seen(number, device, start, stop):
        return number, device, start, stop

    with Threads(2, "cpu:0") as runner:
        number = runner.submit("number", int, 7)
        found = runner.on_device("block", seen, [(0, 3), (3, 5)], number)
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


@pytest.mark.parametrize(
    ("error", "is_that"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError("std::bad_alloc: out_of_memory: CUDA error at: cuda_memory_resource"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_signs_of_full_memory(error, is_that):
    assert is_out_of_memory(error) == is_that


def test_times_tell_stage_and_duration():
    with Threads(2, "cpu") as runner:
        runner.collect([runner.submit("sleep", time.sleep, 0.02) for _ in range(3)])
        times = runner.times()
    assert [task.stage for task in times] == ["sleep"] * 3
    assert all(task.end - task.start >= 0.015 and 0 <= task.cpu < 0.02 for task in times)


def test_by_stage_counts_time_that_tasks_share_once():
    times = [
        TaskTime("b", 5, 6, 0.5),
        TaskTime("a", 3, 4, 1),  # after a gap
        TaskTime("a", 0, 2, 1),
        TaskTime("a", 1, 1.5, 0.25),  # within the first
        TaskTime("a", 1.5, 2.5, 0.5),  # reaches beyond it
    ]
    stages = by_stage(times)
    assert list(stages) == ["a", "b"]
    assert (stages["a"].wall, stages["a"].cpu, stages["a"].num_tasks) == (3.5, 2.75, 4)
    assert (stages["b"].wall, stages["b"].cpu, stages["b"].num_tasks) == (1, 0.5, 1)
    assert by_stage([]) == {}


def test_values_are_freed_when_nobody_needs_them_any_more():
    class Value:
        pass

    def step(value):
        return Value()

    gc.disable()
    try:
        with Threads(2) as runner:
            alive = []
            handle = runner.submit("first", Value)
            for _ in range(10):
                alive.append(weakref.ref(runner.collect([handle])[0]))
                handle = runner.submit("next", step, handle)
            runner.collect([handle])
            wait_until(lambda: not any(value() for value in alive), "a value is kept")
    finally:
        gc.enable()


def test_a_stage_that_returns_too_few_values_is_an_error():
    with Threads(2) as runner:
        handles = runner.submit("short", lambda: [1], num_results=2)
        with pytest.raises(ValueError):
            runner.collect(handles[1:])


def test_closed_threads_take_no_tasks():
    with Threads(2) as runner:
        pass
    with pytest.raises(RuntimeError, match="with block"):
        runner.submit("late", int)


def test_an_error_in_a_long_graph_is_one_error(capfd):
    with pytest.raises(ZeroDivisionError):
        with Threads(2) as runner:
            gate = threading.Event()
            handle = runner.submit("wait", gate.wait)
            for _ in range(2000):
                handle = runner.submit("next", lambda value: value, handle)
            failed = runner.submit("fails", lambda: 1 / 0)
            try:
                runner.collect([failed])
            finally:
                gate.set()
    assert capfd.readouterr().err == ""
