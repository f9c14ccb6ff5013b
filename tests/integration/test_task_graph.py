"""The estimate spread over Ray tasks is the local estimate, bit for bit, whatever happens."""

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from heads import LOGICAL_GPUS
from waiting import wait_until

from cluster.estimate import estimate_pseudo_labels
from cluster.ray_run import SMALL, RayTasks, estimate_on_ray
from cluster.run import FULL, TaskTime, blocks_for
from daal.config import ClusterConfig
from daal.errors import ConfigError, LabelError

CONFIG = ClusterConfig(k1=10, k2=3, p=0.02)


def drawn_features(num_samples=500, dims=24, num_copies=30):
    rng = np.random.default_rng(0)
    num_ids = num_samples // 16
    features = rng.standard_normal((num_ids, dims))[rng.integers(0, num_ids, num_samples)]
    features += 0.4 * rng.standard_normal((num_samples, dims))
    if num_copies:
        features[-num_copies:] = features[0]
    return features.astype(np.float32)


class Stored:
    """Features that a task reads."""

    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 500

    def read(self):
        return np.load(self.path)


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def assert_same(found, expected):
    assert found.eps == expected.eps
    assert np.array_equal(found.labels, expected.labels)
    assert np.array_equal(found.centroids, expected.centroids)
    assert found.notes == expected.notes


@pytest.mark.ray
@pytest.mark.parametrize("num_blocks", [None, 1, 5, pytest.param(17, marks=pytest.mark.nightly)])
def test_same_bits_as_the_local_estimate(ray_cluster, num_blocks):
    features = drawn_features()
    seen = []
    found = estimate_on_ray(
        features, CONFIG, num_blocks=num_blocks, on_progress=lambda *event: seen.append(event)
    )
    if num_blocks == 5:
        assert ("neighbours: products", 15, 15) in seen
    assert all(done <= tasks for _, done, tasks in seen)
    assert_same(found, estimate_pseudo_labels(features, CONFIG))
    stages = {"neighbours: products", "neighbours: refine", "encoding: weights"}
    assert stages <= found.stages.keys()
    assert found.stages["encoding: weights"].num_tasks == (num_blocks or 1)


@pytest.mark.ray
@pytest.mark.parametrize(
    "changes", [{}, {"camera_norm": True}, {"camera_aware": True}, {"search": "approximate"}]
)
def test_stored_features__never_reach_this_process(ray_cluster, monkeypatch, tmp_path, changes):
    if changes.get("search") == "approximate":
        pytest.importorskip("faiss")
    features, camids = drawn_features(dims=8000), np.arange(500) % 3
    np.save(tmp_path / "features.npy", features)
    sizes = []

    def seen(method):
        def watched(self, given):
            found = method(self, given)
            sizes.extend([len(pickle.dumps(given)), len(pickle.dumps(found))])
            return found

        return watched

    monkeypatch.setattr(RayTasks, "values", seen(RayTasks.values))
    monkeypatch.setattr(RayTasks, "share", seen(RayTasks.share))
    config = CONFIG.model_copy(update=changes)
    stored = Stored(tmp_path / "features.npy")
    found = estimate_on_ray(stored, config, camids_N=camids, num_blocks=3)
    assert len(sizes) > 10 and max(sizes) < features.nbytes / 4
    assert_same(found, estimate_pseudo_labels(features, config, camids_N=camids, num_blocks=3))
    monkeypatch.undo()
    assert_same(estimate_on_ray(stored, config, camids_N=camids), found)  # one task


@pytest.mark.ray
def test_same_bits_by_camera(ray_cluster):
    features, camids = drawn_features(), np.arange(500) % 3
    config = CONFIG.model_copy(update={"camera_aware": True})
    found = estimate_on_ray(features, config, camids_N=camids, num_blocks=2)
    assert_same(found, estimate_pseudo_labels(features, config, camids_N=camids))


@pytest.mark.ray
@pytest.mark.parametrize("changes", [{}, {"camera_aware": True}])
def test_same_bits_with_gpus(changes) -> None:
    """Two logical GPUs, which to torch are CPUs."""
    features, camids = drawn_features(), np.arange(500) % 3
    config = CONFIG.model_copy(update=changes)
    program = (
        "import sys, pickle, ray, cluster.neighbours\n"
        "from cluster import ray_run\n"
        "features, config, camids = pickle.loads(sys.stdin.buffer.read())\n"
        "cluster.neighbours.ROWS_ON_DEVICE, ray_run.GPU = 90, 'cpu:0'\n"
        "ray.init(num_cpus=2, num_gpus=2, include_dashboard=False)\n"
        "found = [ray_run.estimate_on_ray(features, config, camids_N=camids, num_blocks=blocks,\n"
        "         on_gpus=ray_run.on_free_gpus) for blocks in (3, None)]\n"
        "sys.stdout.buffer.write(pickle.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | LOGICAL_GPUS,
        input=pickle.dumps((features, config, camids)), capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    by_tasks, by_one = pickle.loads(done.stdout)
    expected = estimate_pseudo_labels(features, config, camids_N=camids)
    for found in (by_tasks, by_one):
        assert_same(found, expected)
        assert "neighbours: search" in found.stages
    assert by_tasks.stages["neighbours: search"].num_tasks > 5


@pytest.mark.ray
def test_killed_workers_change_no_bit(ray_cluster):
    features = drawn_features(8000, 1024, num_copies=0)
    config = ClusterConfig(q=10.35)
    expected = estimate_pseudo_labels(features, config)
    for _ in range(10):  # on a busy machine, the killer may come too late
        found, num_killed = estimate_while_two_workers_are_killed(features, config)
        assert_same(found, expected)
        if num_killed == 2:
            return
    pytest.fail("two workers were never caught at work")


def estimate_while_two_workers_are_killed(features, config):
    """The labels, and how many workers were caught at work, one after the other."""
    killed = []
    done = threading.Event()

    def kill():
        while len(killed) < 2 and not done.is_set():
            at_work = [pid for pid in workers_at("ray::neighbours: products") if pid not in killed]
            if at_work:
                os.kill(at_work[0], signal.SIGKILL)
                killed.append(at_work[0])
            time.sleep(0.002)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        return estimate_on_ray(features, config, num_blocks=8), len(killed)
    finally:
        done.set()
        thread.join()


def workers_at(title):
    """Processes below this one with such a title."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(title):  # empty while it starts or ends
                found.append(process.pid)
    return found


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.parametrize("num_cpus", [1, 2])
def test_number_of_workers_changes_no_bit(num_cpus, tmp_path):
    """In a Ray of its own, as the tests' Ray has four CPUs."""
    features = drawn_features()
    np.save(tmp_path / "features.npy", features)
    script = (
        "import numpy as np, pipelines, ray\n"
        "from cluster.ray_run import estimate_on_ray\n"
        "from daal.config import ClusterConfig\n"
        f"ray.init(address='local', num_cpus={num_cpus}, include_dashboard=False)\n"
        "features = np.load('features.npy')\n"
        "found = estimate_on_ray(features, ClusterConfig(k1=10, k2=3, p=0.02), num_blocks=4)\n"
        "np.save('labels.npy', found.labels)\n"
        "print('eps', float(found.eps).hex())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    expected = estimate_pseudo_labels(features, CONFIG)
    assert f"eps {expected.eps.hex()}" in result.stdout
    assert np.array_equal(np.load(tmp_path / "labels.npy"), expected.labels)


@pytest.mark.ray
def test_a_gpu_without_memory__the_tasks_make_the_same_labels(ray_cluster):
    def full(stage, function, blocks, *shared):
        return [(FULL, TaskTime(stage, 0, 0, 0)) for _ in blocks]

    features = drawn_features()
    found = estimate_on_ray(features, CONFIG, num_blocks=3, on_gpus=full)
    *others, note = found.notes
    assert note == FULL
    alone = estimate_pseudo_labels(features, CONFIG)
    assert_same(dataclasses.replace(found, notes=tuple(others)), alone)


@pytest.mark.ray
def test_cancelling_frees_the_cluster(ray_cluster):
    runner = RayTasks(4)
    for _ in range(4):  # on all four CPUs
        runner.run("sleeping", time.sleep, [(10_000,)])  # longer than a test may take
    runner.cancel()
    assert runner.values(runner.run("after", int, 8 * [()])) == 8 * [0]
    wait_until(lambda: not workers_at("ray::sleeping"), "cancelled tasks hold CPUs")


@pytest.mark.ray
def test_errors_arrive_as_they_are(ray_cluster):
    for num_blocks in (None, 3):
        with pytest.raises(LabelError, match="cluster"):
            estimate_on_ray(drawn_features(), CONFIG, eps=1e-5, num_blocks=num_blocks)


@pytest.mark.ray
def test_cuml_without_gpus(ray_cluster):
    with pytest.raises(ConfigError, match="cuml needs a GPU"):
        estimate_on_ray(drawn_features(), ClusterConfig(backend="cuml"))


@pytest.mark.parametrize(
    ("num_samples", "num_workers", "num_blocks"),
    [(SMALL, 64, 9), (1_000_000, 2, 16), (1_000_000, 64, 256), (100, 64, 1)],
)
def test_default_num_blocks(num_samples, num_workers, num_blocks):
    assert len(blocks_for(RayTasks(num_workers), num_samples)) == num_blocks
