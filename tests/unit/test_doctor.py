"""`daal doctor`: every lack is one line with its remedy, and the exit code is the run's."""

import copy
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import pytest
import torchvision

from daal.config import IMAGENET_WEIGHTS, Config, RayConfig
from daal.load_config import load_config
from pipelines.doctor import machine, probes
from pipelines.doctor.judge import Check, as_dict, exit_code, judge
from pipelines.workers.cluster_address import token_refused

# A machine with all that there is.
ALL: dict[str, Any] = {
    "python": "3.11.7",
    "packages": {
        "python": ">=3.11",
        "groups": {"": [("numpy>=2.2", "2.4.6")], "gpu": [("cuml-cu13>=26.10,<26.11", "26.10.1")],
                   "export": [("onnx>=1.19", "1.23.2")]},
    },
    "torch": {"version": "2.15.0", "cuda": "13.2", "nccl": "2.30.7", "gloo": "in torch",
              "gpus": [["H200", 150 * 2**30]] * 2},
    "nvidia": [{"name": "H200", "memory.total": "143771", "driver_version": "590.10"}] * 2,
    "cuml": {"version": "26.10"}, "cupy": {"version": "14.0"}, "faiss": {"version": "1.15.1"},
    "ray": "2.60.0", "address": None, "cluster": None,
    "token": {"mode": "token", "in_environment": False, "path": "/home/me/.ray/auth_token",
              "is_asked_for": False, "can_be_made": True, "permissions": 0o600},
    "cpus": 64, "compiled": {"folder": "/home/me/.cache/numba"}, "shm": 256e9,
    "memory": {"total": 512e9, "free": 400e9},
    "storage": {"place": "/data", "free": 2e12, "size": 4e12, "written": True},
    "weights": {"path": "/cache/resnet50.pth", "download": True, "is_there": True},
}  # fmt: skip


def lines(changes: dict[str, Any], *settings: str) -> dict[str, Check]:
    """Lines by name, of that machine but for some facts ("torch.gpus")."""
    facts = copy.deepcopy(ALL)
    for key, value in changes.items():
        *above, last = key.split(".")
        inner = facts
        for name in above:
            inner = inner[name]
        inner[last] = value
    return {check.name: check for check in judge(facts, load_config(None, settings))}


def test_a_machine_with_everything() -> None:
    checks = lines({})
    assert {check.status for check in checks.values()} == {"ok"}
    assert not any(check.remedy for check in checks.values())
    assert exit_code(list(checks.values())) == 0
    assert checks["GPUs"].found == "H200 (150 GiB), H200 (150 GiB), driver 590.10"
    assert checks["NCCL"].found == "2.30.7" and "Gloo" not in checks


@pytest.mark.parametrize(
    "changes, settings, name, status, found, remedy, code",
    [
        ({"python": "3.9.1"}, "", "Python", "missing", "3.9.1", "install Python >=3.11", 2),
        ({"packages.groups": {"": [("ray>=2.60", "2.9.0"), ("numba>=0.63", None)]}}, "",
         "packages of daal-reid", "missing", "ray>=2.60 (2.9.0), numba>=0.63 (not installed)",
         "pip install", 2),
        ({"packages.groups": {"": [], "export": [("onnx>=1.19", None)]}}, "",
         "packages of daal-reid[export]", "missing", "onnx", "pip install 'daal-reid[export]'", 0),
        ({"packages": {"failed": "daal is not installed"}}, "", "packages", "warning",
         "not installed", "pip install", 0),
        ({"torch": {"failed": "it crashed (signal 11: libcuda)"}}, "", "torch", "missing",
         "signal 11", "install torch again", 2),
        ({"torch": {"failed": "no answer within 12 s"}}, "", "torch", "warning", "12 s", "idle", 0),
        ({"torch": {"failed": "no answer within 12 s"}}, "ray.use_gpu=true", "torch", "missing",
         "12 s", "idle", 6),
        ({"torch.gpus": [], "nvidia": []}, "", "GPUs", "missing", "CPUs", "paper", 0),
        ({"torch.gpus": [], "nvidia": []}, "ray.use_gpu=true", "GPUs", "missing", "CPUs", "paper",
         6),
        ({"torch.gpus": [["A", 2**34]]}, "ray.use_gpu=false", "GPUs", "ok", "not used", "", 0),
        ({"torch.gpus": [["A", 2**34]]}, "", "GPUs", "ok", "fewer than 2 workers", "", 0),
        ({"torch.gpus": [["A", 2**34]]}, "ray.use_gpu=true", "GPUs", "missing", "too few",
         "set ray.num_workers=1", 6),
        ({"torch.gpus": []}, "", "GPUs", "missing", "driver 590.10, which torch can't use",
         "update the driver to one for CUDA 13.2", 0),
        ({"torch.gpus": [], "torch.cuda": None}, "", "GPUs", "missing", "can't use",
         "install a torch built for CUDA", 0),
        ({"torch.nccl": None}, "", "NCCL", "missing", "not in this torch", "PyTorch's own", 2),
        ({"torch.gpus": [], "torch.gloo": None}, "", "Gloo", "missing", "not in", "PyTorch's", 2),
        ({"cupy": None}, "", "cuML", "missing", "cupy not installed", "daal-reid[gpu]", 0),
        ({"cuml": {"failed": "ImportError: libcudart.so.12"}}, "cluster.backend=cuml", "cuML",
         "missing", "cuml: ImportError: libcudart.so.12", "daal-reid[gpu]", 2),
        ({"cuml": {"failed": "no answer within 90 s"}}, "cluster.backend=cuml", "cuML", "warning",
         "not imported yet (cuml: no answer within 90 s)", "ask again", 0),
        ({"faiss": None}, "cluster.search=approximate", "faiss", "missing", "not installed",
         "pip install 'daal-reid[faiss]'", 2),
        ({"token.mode": "disabled"}, "", "Ray token", "warning", "asks for none",
         "RAY_AUTH_MODE=token", 0),
        ({"token.permissions": 0o644}, "", "Ray token", "warning", "others may read",
         "chmod 600 /home/me/.ray/auth_token", 0),
        ({"token.permissions": None, "address": "10.0.0.1:6379", "cluster": {"refused": "no"}}, "",
         "Ray token", "missing", "is not there", "RAY_AUTH_TOKEN_PATH", 6),
        ({"address": "10.0.0.1:6379", "cluster": {"failed": "no answer within 12 s"}}, "",
         "Ray cluster", "missing", "RAY_ADDRESS=10.0.0.1:6379: no answer", "unset RAY_ADDRESS", 6),
        ({"compiled.folder": None}, "", "compiled code", "warning", "compiles again",
         "NUMBA_CACHE_DIR", 0),
        ({"token.permissions": None, "token.can_be_made": False}, "", "Ray token", "ok",
         "a token of its own", "", 0),
        ({"token.permissions": None, "token.can_be_made": False, "token.is_asked_for": True}, "",
         "Ray token", "missing", "can't be written", "unset it", 6),
        ({"cpus": 2}, "", "CPUs", "warning", "2, shared by the 4", "ray.num_workers=1", 0),
        ({"memory.free": 1e9}, "", "memory", "warning", "1.0 GB of them free", "daal size", 0),
        ({"shm": 64e6}, "", "/dev/shm", "warning", "0.1 GB free for Ray's object store of 10.0 GB",
         "--shm-size=10gb", 0),
        ({"storage.free": 1e9}, "", "disk", "warning", "1.0 GB free in /data", "make room", 0),
        ({"storage.free": 1e6}, "", "disk", "missing", "0.0 GB free", "make room", 8),
        ({"storage.failed": "Permission denied"}, "out=/data/x", "run folder", "missing",
         "out=/data/x: Permission denied", "permissions", 8),
        ({"storage": {"unusable": "Unrecognized filesystem type"}}, "out=ftp://a/b", "run folder",
         "missing", "Unrecognized", "s3://", 2),
        ({"weights.is_there": False}, "", "weights", "warning", "the first run downloads it",
         "network.weights=FILE", 0),
        ({"weights": {"path": "w.pth", "download": False, "is_there": False}}, "", "weights",
         "missing", "w.pth is not there", "network.weights", 4),
    ],
)  # fmt: skip
def test_a_lack(
    changes: dict[str, Any], settings: str, name: str, status: str, found: str, remedy: str,
    code: int,
) -> None:  # fmt: skip
    checks = lines(changes, *filter(None, [settings]))
    check = checks[name]
    assert (check.status, check.exit_code) == (status, code), check
    assert found in check.found and remedy in check.remedy
    assert as_dict([check])["can_start"] == (code == 0)


def test_the_first_lack_gives_the_exit_code() -> None:
    checks = lines({"storage.failed": "x", "address": "a:1", "cluster": {"refused": "too small."}})
    assert exit_code(list(checks.values())) == 6
    assert checks["Ray cluster"].found.endswith("too small")


def test_on_a_cluster_other_machines_have_the_gpus() -> None:
    joined = {"address": "a:1", "cluster": {"resources": "2 workers on GPUs"}}
    checks = lines({**joined, "torch.gpus": [], "nvidia": [], "cpus": 1}, "ray.use_gpu=true")
    assert exit_code(list(checks.values())) == 0
    assert "2 workers on GPUs" in checks["Ray cluster"].found


def test_a_login_in_the_uri_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, ["out=s3://KEY:hush@bucket/run"])
    monkeypatch.setattr(probes, "ask", lambda name, *_, **__: ALL.get(name, {"version": "1"}))
    facts = machine.gather(config, write_out=True, tell=str)
    (check,) = (check for check in judge(facts, config) if check.name == "run folder")
    assert check.exit_code == 2 and "login" in check.found
    assert "hush" not in str(judge(facts, config))


@pytest.mark.parametrize(("backbone", "weights"), machine.IMAGENET)
def test_weights_file__torchvision_s_name_for_it(
    backbone: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = load_config(None, [f"network.backbone={backbone}", f"network.weights={weights}"])
    url = torchvision.models.get_model_weights(backbone)[IMAGENET_WEIGHTS[weights]].url
    path = tmp_path / "hub/checkpoints" / url.rpartition("/")[2]
    expected = {"path": str(path), "download": True, "is_there": False}
    assert machine.weights_file(config) == expected
    path.parent.mkdir(parents=True)
    path.touch()
    assert machine.weights_file(config) == {**expected, "is_there": True}


def test_installed__this_very_environment() -> None:
    facts = machine.installed()
    wanted = dict(facts["groups"][""])
    assert facts["python"] == ">=3.11"
    assert all(version for version in wanted.values())
    assert any(text.startswith("pandas") for text in wanted)  # of ray[data]
    assert not {"dev", "docs"} & set(facts["groups"])


# ---- Probes: real processes -------------------------------------------------------------


def probe_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, seconds: float) -> dict:
    """What is made of a module that does this when it is imported."""
    (tmp_path / "strange.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return probes.ask("import", "strange", seconds=seconds)


@pytest.mark.parametrize(
    "code, answer",
    [
        ("__version__ = '3'\nprint('hello')", {"version": "3"}),
        ("raise RuntimeError('no driver\\nat all')", {"failed": "RuntimeError: no driver"}),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", {"failed": "it crashed (sig"}),
        ("import sys\nsys.exit('bye')", {"failed": "it crashed (no answer: bye)"}),
    ],
)
def test_a_library_that_misbehaves(
    code: str, answer: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = probe_of(tmp_path, monkeypatch, code, seconds=900)
    assert found.keys() == answer.keys()
    assert all(found[key].startswith(value) for key, value in answer.items()), found


def test_a_question_that_is_never_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than a test may take.
    found = probe_of(tmp_path, monkeypatch, "import time\ntime.sleep(10_000)", seconds=1)
    assert found == {"failed": "no answer within 1 s"}


def test_a_large_package__has_longer_than_other_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large.py").write_text("import time\ntime.sleep(2)\n__version__ = '1'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(probes, "SECONDS", 1.0)
    monkeypatch.setattr(probes, "IMPORT_SECONDS", 900.0)
    assert probes.ask("import", "large") == {"version": "1"}


def test_what_takes_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Event()
    said = []

    def tell(text: str) -> None:
        said.append(text)
        told.set()

    def ask(name: str, *_: str) -> dict[str, Any]:
        assert name != "torch" or told.wait(900)
        return ALL.get(name) or {"version": "1"}

    monkeypatch.setattr(probes, "ask", ask)
    monkeypatch.setattr(machine, "PATIENT_SECONDS", 0.5)
    machine.gather(load_config(None, []), write_out=False, tell=tell)
    assert len(said) == 1 and said[0].startswith("waiting for torch: large packages")


def test_storage__leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").touch()
    for out in (tmp_path / "run", tmp_path / "a/b/c", f"file://{tmp_path}/d"):
        facts = probes.storage_facts(str(out), "write")
        assert facts["written"] and facts["free"] > 0 and "failed" not in facts
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == [
        "run", "run/mine.txt",
    ]  # fmt: skip


def test_storage__that_can_not_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "failed" in probes.storage_facts(f"{tmp_path}/file/run", "write")
    assert "failed" in probes.storage_facts("/proc/nothing", "write")
    assert "unusable" in probes.storage_facts("http://example.org/run", "write")
    assert "written" not in probes.storage_facts(f"{tmp_path}/run", "look")


@pytest.mark.ray
def test_a_cluster__joined_for_a_moment(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    fits, does_not = (RayConfig(num_workers=number).model_dump_json() for number in (1, 50))
    assert probes.ask("cluster", fits, seconds=900)["resources"].startswith("1 worker on ")
    refused = probes.ask("cluster", does_not, seconds=900)["refused"]
    assert "the cluster has 4 CPUs, but the run needs 52" in refused


class Gcs(grpc.GenericRpcHandler):
    """A cluster's first port, as far as the token goes."""

    def __init__(self, token: str | None) -> None:
        self.token = token
        self.heard: list[str | None] = []

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        given = dict(call.invocation_metadata).get("authorization")
        self.heard.append(given)

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if self.token and given != f"Bearer {self.token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.mark.parametrize(
    "asks_for, mode, given, refused, sent",
    [
        ("right", "token", "right", None, [None, "Bearer right"]),
        ("right", "token", "wrong", "it refuses the token", [None, "Bearer wrong"]),
        ("right", "disabled", "right", "it asks for a token, and RAY_AUTH_MODE is not", [None]),
        ("right", "token", "", "it asks for a token, and /no/where can't be read", [None]),
        (None, "token", "right", None, [None]),  # kept to oneself
    ],
)
def test_a_cluster_s_token(
    asks_for: str | None, mode: str, given: str, refused: str | None, sent: list[str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(probes, "KNOCK_SECONDS", 900)
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN", given)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/no/where")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # which isn't asked
    gcs = Gcs(asks_for)
    server = grpc.server(ThreadPoolExecutor(2), handlers=[gcs])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        found = token_refused(f"127.0.0.1:{port}", 30)
    finally:
        server.stop(None).wait()
    assert (found or "").startswith(refused or "") and (found is None) == (refused is None)
    assert gcs.heard == sent


# ---- The command ------------------------------------------------------------------------

# With patience, as the machine may be busy.
DAAL = """
from daal.__main__ import main
from pipelines.doctor import probes

probes.SECONDS = probes.IMPORT_SECONDS = probes.CLUSTER_SECONDS = 900
main()
"""


def daal(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DAAL, *arguments],
        capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def test_this_machine_through_the_command(tmp_path: Path) -> None:
    result = daal("doctor", f"out={tmp_path}/run", "network.weights=none", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    checks = {check["name"]: check for check in found["checks"]}
    assert found["can_start"] and found["exit_code"] == 0
    assert checks["Python"]["found"].startswith(sys.version.split()[0])
    assert checks["run folder"]["status"] == checks["packages of daal-reid"]["status"] == "ok"
    assert "starts a Ray of its own" in checks["Ray cluster"]["found"]
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_is_not_there__exit_6_and_its_address(tmp_path: Path) -> None:
    result = daal("doctor", f"out={tmp_path}/run", RAY_ADDRESS="127.0.0.1:1")
    assert result.returncode == 6, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if "127.0.0.1:1" in line)
    assert line.startswith("missing  Ray cluster") and "Connection refused" in line
    assert "unset RAY_ADDRESS" in line
    assert "no run can start here yet: Ray cluster" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_a_setting_that_is_none__exit_2() -> None:
    result = daal("doctor", "clutser.k1=3")
    assert result.returncode == 2 and 'did you mean "cluster"?' in result.stderr


# ---- Configurations ---------------------------------------------------------------------


def test_config_schema__what_editors_check_recipes_with() -> None:
    import jsonschema
    import yaml

    result = daal("config", "schema")
    assert result.returncode == 0, result.stderr
    schema = json.loads(result.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    recipes = sorted((Path(__file__).parents[2] / "pipelines/recipes").glob("*.yaml"))
    assert len(recipes) >= 6
    for recipe in recipes:
        validator.validate(yaml.safe_load(recipe.read_text()))
    for wrong in ({"clutser": {}}, {"cluster": {"k1": "many"}}, {"input": {"height": 3}}):
        assert not validator.is_valid(wrong)
    assert schema["properties"].keys() == Config.model_fields.keys()
    assert "Paper" in schema["properties"]["iterations"]["description"]


def test_config_show_as_json__the_same_values() -> None:
    import yaml

    as_yaml = daal("config", "show", "demo", "seed=5")
    as_json = daal("config", "show", "demo", "seed=5", "--json")
    assert json.loads(as_json.stdout) == yaml.safe_load(as_yaml.stdout)
    assert json.loads(as_json.stdout)["seed"] == 5
