"""`daal label`: pseudo-labels of a features file, in a real process where it matters."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from programs import daal, python

from cluster.estimate import estimate_pseudo_labels
from daal.config import ClusterConfig, RayConfig
from daal.data.records import UNKNOWN_CAMID, UNKNOWN_PID
from daal.errors import ClusterError, DataError
from pipelines.commands.run import run_adaptation
from pipelines.run.feature_files import read_features
from pipelines.tools import label_file as labelling

RULE = ["cluster.q=8", "cluster.k1=10"]
CONFIG = ClusterConfig(q=8, k1=10)


def label(*arguments):
    return daal("label", *arguments)


@pytest.fixture(scope="module")
def known():
    """Features of 300 images, with pids, cameras and splits."""
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(1, 21), 15)
    features = rng.standard_normal((21, 32))[pids] + 0.5 * rng.standard_normal((300, 32))
    split = np.where(np.arange(300) < 240, "train", "query")
    return features.astype(np.float32), pids, np.arange(300) % 3, split


@pytest.fixture(scope="module")
def file(known, tmp_path_factory):
    features, pids, camids, split = known
    lists = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), 32)
    columns = {"path": [f"{i}.jpg" for i in range(300)], "pid": pids, "camid": camids}
    path = tmp_path_factory.mktemp("features") / "features.parquet"
    pq.write_table(pa.table({**columns, "split": split, "feature": lists}), path)
    return path


def test_labels_figures_and_file(file, known, tmp_path):
    out = tmp_path / "labels.parquet"
    result = python("-m", "pipelines.cli", "label", file, "--out", out, "--json", *RULE)
    assert result.returncode == 0, result.stderr
    table = pq.read_table(out)
    expected = estimate_pseudo_labels(known[0], CONFIG)
    assert np.array_equal(table["pseudo_label"], expected.labels)
    assert table["path"][7].as_py() == "7.jpg"
    figures = json.loads(result.stdout)
    assert figures["num_clusters"] == expected.num_clusters
    assert figures["eps"] == expected.eps
    assert figures["ari"] > 0.9


def test_one_split_by_camera(file, known, tmp_path):
    out = tmp_path / "labels.parquet"
    arguments = ["--split", "train", "cluster.camera_aware=true", "cluster.q=8"]
    code, printed, message = label(file, "--out", out, *arguments)
    assert code == 0, message
    assert "num_clusters" in printed
    config = CONFIG.model_copy(update={"camera_aware": True})
    expected = estimate_pseudo_labels(known[0][:240], config, camids_N=known[2][:240])
    assert np.array_equal(pq.read_table(out)["pseudo_label"], expected.labels)


def test_array_file(known, tmp_path):
    np.save(tmp_path / "features.npy", known[0].astype(np.float64))
    out = tmp_path / "labels.parquet"
    code, _, message = label(tmp_path / "features.npy", "--out", out, *RULE)
    assert code == 0, message
    table = pq.read_table(out)
    assert table.column_names == ["row", "pseudo_label"]
    assert np.array_equal(table["pseudo_label"], estimate_pseudo_labels(known[0], CONFIG).labels)


def test_on_ray(file, known, tmp_path):
    out = tmp_path / "labels.parquet"
    given = ["--ray", "--json", *RULE, "ray.num_workers=1"]
    result = python("-m", "pipelines.cli", "label", file, "--out", out, *given)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["num_images"] == 300
    labels = pq.read_table(out)["pseudo_label"]
    assert np.array_equal(labels, estimate_pseudo_labels(known[0], CONFIG).labels)


# More of them: tests/faults/bad_features.py.
@pytest.mark.parametrize(
    ("columns", "settings", "code", "said"),
    [
        ({"feature": [{"a": 1.0}] * 300}, [], 3, "not a list of numbers"),
        ({"camid": ["7"] * 300}, ["cluster.camera_norm=true"], 3, "is string, not integers"),
        ({"camid": [7.5] * 300}, ["cluster.camera_norm=true"], 3, "is double, not integers"),
        ({}, ["cluster.q=1e-5"], 7, "or q="),
        ({}, ["--out", "."], 2, "that is a folder"),
    ],
)
def test_bad_input(columns, settings, code, said, known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"feature": known[0].tolist(), **columns}), "f.parquet")
    found, _, message = label("f.parquet", *settings)
    assert (found, message.startswith("error: ")) == (code, True)
    assert said in message.replace("\n", " ")


OTHER_COLUMNS = {
    "words": {"pid": [f"person_{n}" for n in range(300)], "camid": ["lobby"] * 300},
    "fractions": {"pid": np.arange(300) + 0.5},
    "beyond 64 bits": {"pid": np.full(300, 2**64 - 1, np.uint64)},
    "a split of numbers": {"split": np.arange(300)},
    "a split missing": {"split": [None, *["train"] * 299]},
}


@pytest.mark.parametrize("name", OTHER_COLUMNS)
def test_columns_that_are_not_needed_are_left_out__with_a_note(name, known, tmp_path):
    columns = OTHER_COLUMNS[name]
    path, out = tmp_path / "features.parquet", tmp_path / "labels.parquet"
    pq.write_table(pa.table({"feature": known[0].tolist(), **columns}), path)
    code, printed, message = label(path, "--out", out, "--json", *RULE)
    assert code == 0, message
    for column in columns:
        assert f'its column "{column}"' in message.replace("\n", " ")
    assert "the column is left out" in message.replace("\n", " ")
    assert json.loads(printed)["ari"] is None
    expected = estimate_pseudo_labels(known[0], CONFIG)
    assert np.array_equal(pq.read_table(out)["pseudo_label"], expected.labels)


@pytest.mark.parametrize("kind", ["null", "float", "nothing"])
def test_missing_pids_and_camids_are_unknown(kind, known, tmp_path):
    features, pids, camids, _ = known
    gone = np.arange(300) % 5 == 0
    if kind == "float":  # as pandas writes integers of which some are missing
        table = {"pid": np.where(gone, np.nan, pids), "camid": camids.astype(float)}
    elif kind == "null":
        table = {"pid": pa.array(pids, mask=gone), "camid": pa.array(camids, mask=gone)}
    else:
        gone = np.full(300, True)
        table = {"pid": pa.nulls(300), "camid": pa.nulls(300)}
    pq.write_table(pa.table({"feature": features.tolist(), **table}), tmp_path / "some.parquet")
    read = read_features(tmp_path / "some.parquet")
    assert read.left_out == ()
    assert np.array_equal(read.pids, np.where(gone, UNKNOWN_PID, pids))
    expected = camids if kind == "float" else np.where(gone, UNKNOWN_CAMID, camids)
    assert np.array_equal(read.camids, expected)


def test_figures_of_cameras(file, known, tmp_path):
    code, printed, message = label(file, "--out", tmp_path / "labels.parquet", "--json", *RULE)
    assert code == 0 and "clusters follow cameras" not in message
    figures = json.loads(printed)
    assert figures["one_camera_share"] == 0 and figures["cross_camera_precision"] > 0.9
    # The same people, but each seen by one camera.
    alone = pa.table({"feature": known[0].tolist(), "camid": known[1] % 2})
    pq.write_table(alone, tmp_path / "alone.parquet")
    code, _, message = label(
        tmp_path / "alone.parquet", "--out", tmp_path / "labels.parquet", *RULE
    )
    assert code == 0 and "clusters follow cameras: 100% of them" in message
    assert "cluster.camera_norm=true" in message.replace("\n", " ")


def test_features_under_another_name__which_names_there_are(known, tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": ["a.jpg"] * 300, "embedding": known[0].tolist()}), path)
    with pytest.raises(DataError, match="no column \"feature\"; it has 'image', 'embedding'; give"):
        read_features(path)


@pytest.mark.parametrize("kind", [pa.list_(pa.int16()), pa.large_list(pa.int64())])
def test_integers_count_as_float32(kind, tmp_path):
    table = pa.table({"feature": pa.array([[1, 2], [3, 4], [5, 6]], kind), "pid": [3, -1, 0]})
    pq.write_table(table, tmp_path / "integers.parquet")
    given = read_features(tmp_path / "integers.parquet")
    assert given.features_NC.dtype == np.float32
    assert given.features_NC.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert given.pids.tolist() == [3, -1, 0]
    np.save(tmp_path / "integers.npy", np.array([[1, 2], [3, 4]]))
    assert read_features(tmp_path / "integers.npy").features_NC.dtype == np.float32


@pytest.mark.parametrize(
    ("settings", "rule"), [([], "q"), (["cluster={p: 1e-3}"], "p"), (["cluster.eps=0.5"], "fixed")]
)
def test_rule_of_eps_is_q_unless_something_else_is_given(settings, rule):
    assert labelling.label_config(settings).cluster.eps_rule == rule


def test_python_without_a_configuration_labels_as_the_command_does(known):
    alone = estimate_pseudo_labels(known[0][:120])
    config = labelling.label_config().cluster
    assert np.array_equal(alone.labels, estimate_pseudo_labels(known[0][:120], config).labels)
    assert alone.num_clusters == 8


def test_given_eps_is_used(file, tmp_path):
    settings = ["--json", "cluster.k1=10", "cluster.eps=0.55"]
    code, out, message = label(file, "--out", tmp_path / "labels.parquet", *settings)
    assert code == 0, message
    figures = json.loads(out)
    assert (figures["eps"], figures["p"]) == (0.55, None)


def test_figures_that_fail_leave_no_file(file, tmp_path, monkeypatch):
    monkeypatch.setattr(labelling, "cluster_quality", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        label(file, "--out", tmp_path / "labels.parquet", *RULE)
    assert list(tmp_path.iterdir()) == []


def lost_worker(*_, **__):
    from ray.exceptions import WorkerCrashedError

    raise WorkerCrashedError


def test_error_of_ray__exit_6(file, tmp_path, monkeypatch):
    monkeypatch.setattr(labelling, "ray_session", lost_worker)
    code, _, message = label(file, "--out", tmp_path / "labels.parquet", "--ray", *RULE)
    assert code == 6
    assert "Ray stopped the run" in message and "continues" not in message
    assert list(tmp_path.iterdir()) == []


def test_error_of_ray_while_adapting_says_how_to_go_on(tiny_config, monkeypatch):
    monkeypatch.setattr("pipelines.workers.session.ray_session", lost_worker)
    with pytest.raises(ClusterError, match="the same command continues it, and -v shows"):
        run_adaptation(tiny_config)


def test_ray_is_asked_for_no_more_than_labelling_needs(file, monkeypatch):
    asked = {}

    @contextmanager
    def session(config, verbose):
        asked["config"] = config
        yield SimpleNamespace(threads_per_task=3, use_gpu=False)

    monkeypatch.setattr(labelling, "ray_session", session)
    monkeypatch.setattr(labelling, "estimate_on_ray", lambda *_, **given: asked.update(given))
    training = RayConfig(num_workers=8, data_cpus=4, use_gpu=False)
    labelling.label(read_features(file), CONFIG, training)
    config = asked["config"]
    assert (config.num_workers, config.data_cpus, config.wait_minutes) == (1, 1, 0)
    assert (asked["num_threads"], asked["on_gpus"], config.use_gpu) == (3, None, False)
