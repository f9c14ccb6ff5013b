"""ray.use_gpu=auto on a cluster whose autoscaler has node types with GPUs, pretended here."""

import pytest
from heads import ray_head
from programs import python

pytestmark = [pytest.mark.ray, pytest.mark.nightly]
CODE = """
from daal.config import RayConfig
from pipelines.workers.session import ray_session
with ray_session(RayConfig(num_workers=2, data_cpus=1, wait_minutes=3), False, 64) as resources:
    print(resources)
"""


def node_type(most, **resources):
    return {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": most}


@pytest.mark.parametrize(
    ("autoscaler", "node_types", "says"),
    [
        (1, {"gpu_worker": node_type(4, CPU=2, GPU=1)}, "2 workers on GPUs"),
        (2, {"gpu_worker": node_type(4, CPU=2, GPU=1)}, "2 workers on GPUs"),
        (1, {"cpu_worker": node_type(4, CPU=2)}, "2 workers on CPUs"),
    ],
    ids=["enough", "enough, version 2", "none"],
)
def test_auto__asks_for_gpu_nodes_where_there_are_such(autoscaler, node_types, says):
    with ray_head(num_cpus=4, node_types=node_types, autoscaler=autoscaler) as head:
        done = python("-c", CODE, env=head.joined)
        assert done.returncode == 0 and done.stdout.startswith(says), (done.stdout, done.stderr)
        assert "waiting for GPUs for 2 workers" in done.stderr.replace("\n", " ")
