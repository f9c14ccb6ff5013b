"""Trackers follow metrics.jsonl: series go on after an interruption, and no failure stops a run."""

import json
import struct
import threading

import pytest
from tensorboardX.proto.event_pb2 import Event

from daal.config import Config, TrackingConfig
from daal.errors import ConfigError
from daal.load_config import load_config
from pipelines.run.folder import RunFolder
from pipelines.run.kept_config import keep_config
from pipelines.show import trackers
from pipelines.show.trackers import check_tracking, tracked

TERMS = {"source": 2.0, "total": 2.5}


def training(stage, *steps, of=20):
    return [
        {"time": 100.0 + step, "stage": stage, "epoch": 1, "epochs": 1, "step": step, "steps": of,
         "loss": TERMS, "lr": 0.1, "images_per_s": 50.0, "input_share": 0.0}
        for step in steps
    ]  # fmt: skip


def scores(stage, value, **figures):
    return {"time": 200.0, "stage": stage, "map": value, "rank1": value, **figures}


# A run that was stopped at step 14 of iteration 2, its last checkpoint being that of step 10.
CLUSTERS = {"num_clusters": 7, "outlier_share": 0.1, "eps": [0.4], "cross_camera_share": None}
FIRST = [
    {"time": 1.0, "stage": "pretrain/train", "state": "started"},
    *training("pretrain", 10, 20),
    {"time": 1.0, "stage": "pretrain/extract", "extracted": 5, "num_images": 9,
     "extracted_per_s": 3.0},
    scores("pretrain", 0.25),
    *training("iteration-01", 8, 16, of=16),
    scores("iteration-01", 0.5, **CLUSTERS),
    *training("iteration-02", 5, 12, 14),
]  # fmt: skip
SECOND = [
    scores("pretrain", 0.25),
    scores("iteration-01", 0.5, **CLUSTERS),
    *training("iteration-02", 13, 19, 20),
    scores("iteration-02", 0.75, **CLUSTERS, one_camera_share=0.5),
    *training("supervised", 20),
    scores("supervised", 0.9),
]
STEPS = [8, 16, 16 + 5, 16 + 12, 16 + 14, 16 + 19, 16 + 20]


def config_of(out, **settings):
    return Config.model_validate({"out": str(out), "tracking": settings})


def follow(config, events):
    """One start of a run; returns what was noted."""
    run, notes = RunFolder(config.out), []
    with tracked(config, run, "mine", notes.append, notes.append) as show:
        for event in events:
            run.append("metrics.jsonl", event)
            show(event)
    return notes


def tensorboard(folder):
    """(step, value) by tag, of all event files in order."""
    found = {}
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):  # records: length, its checksum, data, its checksum
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
            at += 12 + length + 4
    return found


def test_tensorboard__a_resumed_run_continues_its_series(tmp_path):
    config = config_of(tmp_path)
    assert follow(config, FIRST) == follow(config, SECOND) == []
    found = tensorboard(tmp_path / "tensorboard")
    assert found["adapt/loss/total"] == [(step, 2.5) for step in STEPS]
    assert found["scores/map"] == [(0, 0.25), (1, 0.5), (2, 0.75)]
    assert found["clusters/num_clusters"] == [(1, 7.0), (2, 7.0)]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_mlflow__one_run_however_often_it_is_continued(tmp_path, monkeypatch, capfd):
    mlflow = pytest.importorskip("mlflow", reason='pip install "daal-reid[mlflow]"')
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the store that needs no server
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "cameras")
    uri = (tmp_path / "store").as_uri()
    for out, events in (("a", FIRST), ("a", SECOND), ("b", FIRST)):
        config = config_of(tmp_path / out, mlflow=uri)
        assert follow(config, events) == []
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("cameras").experiment_id
    runs = client.search_runs([experiment])
    assert len(runs) == 2
    ours = json.loads((tmp_path / "a/tracking.json").read_text())["id"]
    (run,) = (run for run in runs if run.data.tags["daal.id"] == ours)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "mine")
    assert run.data.params["cluster.k1"] == "20"
    assert not any(name.startswith("tracking") for name in run.data.params)
    history = client.get_metric_history(run.info.run_id, "adapt/loss/total")
    assert [point.step for point in history] == STEPS
    assert history[0].timestamp == 108_000
    assert capfd.readouterr().out == ""  # standard output is the run's


def test_wandb__offline_in_the_run_folder(tmp_path, monkeypatch, capfd):
    wandb = pytest.importorskip("wandb", reason='pip install "daal-reid[wandb]"')
    monkeypatch.setenv("WANDB_MODE", "offline")
    for events in (FIRST, SECOND):
        assert follow(config_of(tmp_path, wandb="me/cameras"), events) == []
        wandb.teardown()  # as the end of the process does
    ours = json.loads((tmp_path / "tracking.json").read_text())["id"]
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{ours}/run-{ours}.wandb"))
    assert len(files) == 2
    assert capfd.readouterr().out == ""


def test_wandb__without_a_login_asks_nothing_and_is_noted(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason='pip install "daal-reid[wandb]"')
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    (note,) = follow(config_of(tmp_path / "run", wandb="cameras"), FIRST)
    wandb.teardown()
    assert note.startswith("Weights & Biases gets no more of this run's figures (No API key")


@pytest.mark.parametrize("content", [b"", b'{"id": "ab', b"[]", b'{"name": 1}', b"\xff"])
def test_a_damaged_id__begins_a_new_run__said_once(tmp_path, content):
    (tmp_path / "tracking.json").write_bytes(content)
    (note,) = follow(config_of(tmp_path), FIRST)
    assert note.startswith("tracking.json is damaged, so trackers begin a new run")
    assert len(json.loads((tmp_path / "tracking.json").read_text())["id"]) == 16
    assert follow(config_of(tmp_path), SECOND) == []


def test_a_tracker_that_fails__is_noted_once__and_the_others_go_on(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason='pip install "daal-reid[mlflow]"')
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (note,) = follow(config_of(tmp_path, mlflow="http://127.0.0.1:9"), FIRST)
    assert note.startswith("MLflow gets no more of this run's figures (") and "\n" not in note
    assert len(tensorboard(tmp_path / "tensorboard")["adapt/loss/total"]) == 5


def test_a_tracker_that_hangs__is_not_waited_for(tmp_path, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(trackers.TensorBoard, "log", lambda self, point: over.wait(20))
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.1)
    (note,) = follow(config_of(tmp_path), FIRST)
    assert note.startswith("TensorBoard hasn't taken all figures in 0.1 s")
    over.set()


def test_no_tensorboard_on_object_stores__and_that_is_said(tmp_path, monkeypatch):
    run = RunFolder(str(tmp_path))
    run.is_local = False
    said = []
    with tracked(config_of(tmp_path), run, "mine", said.append, said.append) as show:
        show(FIRST[1])
    assert len(said) == 1 and "TensorBoard is left out" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing_is_named_before_the_run(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    check_tracking(TrackingConfig())
    with pytest.raises(ConfigError, match=r'pip install "daal-reid\[wandb\]"'):
        check_tracking(TrackingConfig(wandb="cameras"))


def test_no_logins_in_the_configuration():
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        load_config(None, ["tracking.mlflow=http://me:secret@host:5000"])
    assert "secret" not in str(caught.value)


def test_tracking_may_change_when_a_run_is_continued(tmp_path):
    keep_config(RunFolder(str(tmp_path)), config_of(tmp_path))
    keep_config(RunFolder(str(tmp_path)), config_of(tmp_path, wandb="cameras"))
    assert "tracking" not in (tmp_path / "config.yaml").read_text()
