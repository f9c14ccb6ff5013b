"""Cluster files: by Ray's own schema code, and by what that code misses."""

import json
import re
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

import daal
from pipelines.show.gauges import GAUGES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "pipelines/deploy"
CLUSTERS = [ROOT / "ray_cluster.yaml", DEPLOY / "on_premise.yaml"]
MANIFESTS = [DEPLOY / "rayjob.yaml", DEPLOY / "raycluster.yaml"]


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(params=CLUSTERS, ids=lambda path: path.name)
def cluster(request):
    return read(request.param)


def test_ray_accepts_it(cluster):
    validate_config(prepare_config(cluster))


def test_no_one_gets_in(cluster):
    head, worker = (" ".join(cluster[f"{kind}_start_ray_commands"]) for kind in ("head", "worker"))
    assert "--dashboard-host=127.0.0.1" in head and "0.0.0.0" not in head + worker
    for commands in (head, worker):
        assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/home/ray/.ray/auth_token ray start" in (
            re.sub(r"\s+", " ", commands)
        )
    assert "/home/ray/.ray/auth_token" in cluster["file_mounts"]
    assert any("chmod 600" in command for command in cluster["setup_commands"])
    group = cluster["provider"].get("security_group", {})
    for rule in group.get("IpPermissions", []):
        assert all(each["CidrIp"] != "0.0.0.0/0" for each in rule["IpRanges"])


def test_the_head_has_no_gpu_and_workers_come_and_go():
    types = read(ROOT / "ray_cluster.yaml")["available_node_types"]
    assert "GPU" not in types["head"]["resources"]
    worker = types["gpu_worker"]
    assert worker["resources"]["GPU"] == 1 and worker["min_workers"] == 0 < worker["max_workers"]
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


@pytest.mark.parametrize("path", [*CLUSTERS, *MANIFESTS], ids=lambda path: path.name)
def test_the_image_is_this_version(path):
    images = set(re.findall(r"REGISTRY/daal:(\S+)", path.read_text(encoding="utf-8")))
    assert images == {f"{daal.__version__}-gpu"}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes(path):
    manifest = read(path)
    assert manifest["apiVersion"] == "ray.io/v1" and manifest["kind"] in ("RayJob", "RayCluster")
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and spec["rayVersion"] == pinned[1]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"].get("serviceType", "ClusterIP") == "ClusterIP"
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert "nvidia.com/gpu" not in groups[0]["template"]["spec"]["containers"][0]["resources"]
    if manifest["kind"] == "RayJob":
        assert manifest["spec"]["entrypoint"].startswith("python -m daal adapt modern ")
        assert manifest["spec"]["shutdownAfterJobFinishes"] is True


def test_the_image_is_pinned_and_not_root():
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert "--constraint constraints.txt" in text
    assert text.index("USER ray") > text.index("pip install")
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)
    for name in " ".join(copied).split():
        assert f"!{name}" in ignored and (ROOT / name).exists(), name


def test_the_image_has_its_loops_compiled__by_the_user_who_may_compile_more():
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    (folder,) = re.findall(r"^ENV NUMBA_CACHE_DIR=(\S+)$", text, re.MULTILINE)
    assert text.index(f"install --directory --owner=ray {folder}") < text.index("USER ray")
    assert text.index("USER ray") < text.index(folder, text.index("USER ray"))
    assert text.index("RUN python -m cluster.warm_up") > text.index("ENV NUMBA_CACHE_DIR")
    assert (ROOT / "cluster/warm_up.py").exists()


def test_panels_show_gauges_that_exist():
    dashboard = json.loads((DEPLOY / "grafana_dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = set(re.findall(r"ray_(daal_\w+)", " ".join(queries)))
    exported = {name for name, _ in GAUGES.values()} | {"daal_loss", "daal_stage"}
    assert shown <= exported
    assert exported - shown == {"daal_step", "daal_steps"}
    assert all('{run=~"$run"}' in query for query in queries)
