"""After `python -m cluster.warm_up`, neither this process nor a Ray task compiles a loop again."""

import os

import pytest
from programs import python

pytestmark = [pytest.mark.ray, pytest.mark.nightly]
LABELS = """
import numpy as np
import ray
from cluster.estimate import estimate_pseudo_labels
from cluster.ray_run import estimate_on_ray
from daal.config import ClusterConfig

rng = np.random.default_rng(1)
people_PD = rng.standard_normal((50, 24))
features_ND = (people_PD.repeat(16, 0) + 0.2 * rng.standard_normal((800, 24))).astype(np.float32)
camids_N = np.arange(800) % 4
ray.init(num_cpus=2, num_gpus=0, include_dashboard=False)
for camera_aware in (False, True):
    config = ClusterConfig(q=10.35, camera_aware=camera_aware, max_cluster_share=1)
    estimate_pseudo_labels(features_ND, config, camids_N=camids_N)
    estimate_on_ray(features_ND, config, camids_N=camids_N)  # one task
    estimate_on_ray(features_ND, config, camids_N=camids_N, num_blocks=2)
"""


def test_nothing_is_compiled_again(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for command in (["-m", "cluster.warm_up"], ["-c", LABELS]):
        before = set(tmp_path.rglob("*.nbc"))
        done = python(*command, env=environment)
        assert done.returncode == 0, done.stderr
    assert len(before) > 20
    assert sorted(path.name for path in set(tmp_path.rglob("*.nbc")) - before) == []
