"""`daal doctor`: each line has its remedy, and the exit code is a run's."""

import json
import os
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from programs import python

from daal.config import Config, RayConfig
from daal.load_config import load_config
from pipelines.doctor import checks, probes
from pipelines.doctor.checks import Check, out_of_range, requirements

GPUS = [["H200", 150 * 2**30]] * 2
TORCH = {"version": "2.15.0", "cuda": "13.2", "weights": None, "gpus": GPUS}
DRIVER = [("H200", "590.10")] * 2
LATE = {"late": "no answer within 90 s"}
REFUSED = {"refused": "too small.", "exit_code": 6}
DISK = {"place": "/data", "free": 2e12}


def assert_says(line, status, code, said):
    assert (line.status, line.exit_code) == (status, code)
    assert said in f"{line.name}: {line.found}; {line.remedy}"


@pytest.mark.parametrize(
    "changes, driver, setting, status, code, said",
    [
        ({}, DRIVER, "", "ok", 0, "GPUs: H200 (150 GiB), H200 (150 GiB), driver 590.10"),
        ({}, DRIVER, "ray.use_gpu=false", "ok", 0, "not used"),
        ({"gpus": []}, [], "", "missing", 0, "everything runs on CPUs"),
        ({"gpus": []}, [], "ray.use_gpu=true", "missing", 6, "everything runs on CPUs"),
        ({"gpus": [["A", 2**34]]}, DRIVER, "ray.use_gpu=true", "missing", 6, "ray.num_workers=1"),
        ({"gpus": []}, DRIVER, "", "missing", 0, "can't use; torch is built for 13.2; update the"),
        ({"gpus": [], "cuda": None}, DRIVER, "", "missing", 0, "install a torch built for CUDA"),
    ],
)
def test_gpus(changes, driver, setting, status, code, said):
    config = load_config(None, [setting] if setting else [])
    (line,) = checks.check_gpus(TORCH | changes, driver, config)
    assert_says(line, status, code, said)


def test_on_a_cluster_other_machines_have_the_gpus(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "a:1")
    config = load_config(None, ["ray.use_gpu=true"])
    assert checks.exit_code([*checks.check_gpus(TORCH | {"gpus": []}, [], config)]) == 0


@pytest.mark.parametrize(
    "line, status, code, said",
    [
        (lambda: checks.check_import("cuML", {"failed": "ImportError: x"}, "buy", False),
         "missing", 0, "cuML: ImportError: x; buy"),
        (lambda: checks.check_import("torch", {"failed": "it crashed"}, "buy", True),
         "missing", 2, "torch: it crashed; buy"),
        (lambda: checks.check_import("cuML", LATE, "buy", True), "warning", 0,
         "not imported yet: no answer within 90 s; ask again"),
        (lambda: checks.check_cluster({"resources": "2 workers"}), "ok", 0, "would take 2 workers"),
        (lambda: checks.check_cluster(LATE), "missing", 6, "unset RAY_ADDRESS"),
        (lambda: checks.check_cluster(REFUSED), "missing", 6, "Ray cluster: too small."),
        (lambda: checks.check_storage("o", DISK | {"free": 1e9}), "warning", 0, "1.0 GB free"),
        (lambda: checks.check_storage("o", DISK | {"free": 1e6}), "missing", 8, "make room"),
        (lambda: checks.check_storage("o", LATE), "missing", 8, "choose another out="),
        (lambda: checks.check_weights(None, "/no/r.pth"), "warning", 0, "downloads it"),
        (lambda: checks.check_weights("/no/w.pth", None), "missing", 4, "network.weights"),
    ],
)  # fmt: skip
def test_a_line(line, status, code, said):
    made = line()
    assert_says(made if isinstance(made, Check) else list(made)[-1], status, code, said)


def test_weights_that_nobody_could_look_for__no_line():
    assert list(checks.check_weights(None, None)) == []


def test_packages():
    needed = requirements()
    assert out_of_range(needed) == {} and "ray" in {each.name for each in needed}
    assert {each.name for each in requirements("export")} == {"onnx", "onnxruntime", "onnxscript"}
    wanted = [Requirement("numpy<1"), Requirement("no-such-package>=2"), Requirement("numpy")]
    found = out_of_range(wanted)
    assert found.keys() == {"numpy<1", "no-such-package>=2"}
    assert found["no-such-package>=2"] == "not installed"


def test_a_login_in_the_uri_is_neither_printed_nor_passed_on(monkeypatch):
    asked = []

    def ask_all(questions, tell):
        asked.append(questions)
        return {name: {"version": "1"} for name in ("Ray", "cuML", "faiss", "timm")} | {
            "torch": TORCH
        }

    monkeypatch.setattr(checks, "ask_all", ask_all)
    lines = checks.examine(load_config(None, ["out=s3://KEY:hush@bucket/run"]), True, str)
    (line,) = (each for each in lines if each.name == "run folder")
    assert line.exit_code == 2 and "login" in line.found
    assert "hush" not in str(lines) + str(asked)


@pytest.mark.parametrize(
    "code, seconds, answer",
    [
        ("__version__ = '3'\nprint('hello')", 900, {"version": "strange 3"}),
        ("raise RuntimeError('no driver\\nat all')", 900, {"failed": "RuntimeError: no driver"}),
        ("import os\nos.kill(os.getpid(), 11)", 900, {"failed": "it crashed (signal 11"}),
        ("import time\ntime.sleep(10_000)", 1, {"late": "no answer within 1 s"}),
    ],
)
def test_a_library_that_misbehaves(code, seconds, answer, tmp_path, monkeypatch):
    (tmp_path / "strange.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(probes.SECONDS, "import", seconds)
    monkeypatch.setattr(probes, "PATIENT_SECONDS", 0)
    told = []
    found = probes.ask_all({"strange": ("import", "strange")}, told.append)["strange"]
    assert found.keys() == answer.keys() and told[0].startswith("waiting for strange: large")
    assert all(found[key].startswith(value) for key, value in answer.items()), found


def test_storage__leaves_no_file(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").touch()
    for out in (tmp_path / "run", tmp_path / "a/b/c", f"file://{tmp_path}/d"):
        facts = probes.storage_facts(str(out), "write")
        assert facts["written"] and facts["free"] > 0 and "refused" not in facts
    assert set(tmp_path.rglob("*")) == {tmp_path / "run", tmp_path / "run/mine.txt"}
    assert probes.answer("storage", f"{tmp_path}/run/mine.txt/run", "write")["exit_code"] == 8
    assert probes.answer("storage", "/proc/nothing", "write")["exit_code"] == 8
    assert "written" not in probes.storage_facts(f"{tmp_path}/run", "look")


@pytest.mark.ray
def test_a_cluster__joined_for_a_moment(ray_cluster, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.setitem(probes.SECONDS, "cluster", 900.0)
    fits, does_not = (RayConfig(num_workers=number).model_dump_json() for number in (1, 50))
    assert probes.ask("cluster", fits)["resources"].startswith("1 worker on ")
    refused = probes.ask("cluster", does_not)
    assert "the cluster has 4 CPUs, but the run needs 52" in refused["refused"]
    assert refused["exit_code"] == 6


# With patience, as the machine may be busy.
DAAL = """
from daal.__main__ import main
from pipelines.doctor import probes

probes.SECONDS = dict.fromkeys(probes.SECONDS, 900)
main()
"""


def daal(*arguments, **environment):
    return python("-c", DAAL, *arguments, env=os.environ | environment)


def test_this_machine_through_the_command(tmp_path):
    result = daal("doctor", f"out={tmp_path}/run", "network.weights=/no/w.pth", "--json")
    assert result.returncode == 4, result.stderr
    found = json.loads(result.stdout)
    lines = {check["name"]: check for check in found["checks"]}
    assert not found["can_start"] and lines["weights"]["exit_code"] == 4
    assert lines["Python"]["found"].startswith(sys.version.split()[0])
    assert lines["run folder"]["status"] == lines["packages of daal-reid"]["status"] == "ok"
    assert "starts a Ray of its own" in lines["Ray cluster"]["found"]
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_is_not_there__exit_6_and_its_address(tmp_path):
    result = daal("doctor", f"out={tmp_path}/run", RAY_ADDRESS="127.0.0.1:1")
    assert result.returncode == 6, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if "127.0.0.1:1" in line)
    assert line.startswith("missing  Ray cluster") and "Connection refused" in line
    assert "no run can start here yet: Ray cluster" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_config_schema__what_editors_check_recipes_with():
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
