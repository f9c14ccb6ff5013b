"""`daal label`: pseudo-labels of a features file, in a real process where it matters."""

import json
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.estimate import estimate_pseudo_labels
from daal.config import ClusterConfig, RayConfig
from daal.data.records import UNKNOWN_CAMID, UNKNOWN_PID
from daal.errors import ClusterError, ConfigError, DataError
from pipelines import cli
from pipelines.commands.arguments import ray_errors
from pipelines.commands.run import run_adaptation
from pipelines.run.feature_files import read_features
from pipelines.tools import label_file as labelling

RULE = ["cluster.q=8", "cluster.k1=10"]
CONFIG = ClusterConfig(q=8, k1=10)


def daal_label(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "label", *map(str, arguments)],
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture
def run(monkeypatch, capsys):
    """`daal label` in this process: exit code, standard output and error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["daal", "label", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return exit_.value.code, out, err

    return run


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
    result = daal_label(file, "--out", out, "--json", *RULE)
    assert result.returncode == 0, result.stderr
    table = pq.read_table(out)
    expected = estimate_pseudo_labels(known[0], CONFIG)
    assert np.array_equal(table["pseudo_label"], expected.labels)
    assert table["path"][7].as_py() == "7.jpg"
    figures = json.loads(result.stdout)
    assert figures["num_clusters"] == expected.num_clusters
    assert figures["eps"] == expected.eps
    assert figures["ari"] > 0.9


def test_one_split_by_camera(file, known, tmp_path, run):
    out = tmp_path / "labels.parquet"
    arguments = ["--split", "train", "cluster.camera_aware=true", "cluster.q=8"]
    code, printed, message = run(file, "--out", out, *arguments)
    assert code == 0, message
    assert "num_clusters" in printed
    config = CONFIG.model_copy(update={"camera_aware": True})
    expected = estimate_pseudo_labels(known[0][:240], config, camids_N=known[2][:240])
    assert np.array_equal(pq.read_table(out)["pseudo_label"], expected.labels)


def test_array_file(known, tmp_path, run):
    np.save(tmp_path / "features.npy", known[0].astype(np.float64))
    out = tmp_path / "labels.parquet"
    code, _, message = run(tmp_path / "features.npy", "--out", out, *RULE)
    assert code == 0, message
    table = pq.read_table(out)
    assert table.column_names == ["row", "pseudo_label"]
    assert np.array_equal(table["pseudo_label"], estimate_pseudo_labels(known[0], CONFIG).labels)


def test_on_ray(file, known, tmp_path):
    out = tmp_path / "labels.parquet"
    result = daal_label(file, "--out", out, "--ray", "--json", *RULE, "ray.num_workers=1")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["num_images"] == 300
    labels = pq.read_table(out)["pseudo_label"]
    assert np.array_equal(labels, estimate_pseudo_labels(known[0], CONFIG).labels)


def test_bad_input_names_the_thing_and_the_remedy(file, known, tmp_path, run):
    text = tmp_path / "text.parquet"
    text.write_text("not parquet")
    pq.write_table(pa.table({"feature": ["a"]}), tmp_path / "words.parquet")
    pq.write_table(pa.table({"feature": [[1.0], [1.0, 2.0]]}), tmp_path / "ragged.parquet")
    pq.write_table(pa.table({"feature": [{"a": 1.0}]}), tmp_path / "struct.parquet")
    good = known[0].tolist()
    for name, values in (("text", "7"), ("none", None), ("real", 7.5)):
        table = pa.table({"feature": good, "camid": [values, *range(1, 300)]} if name != "text"
                         else {"feature": good, "camid": [values] * 300})  # fmt: skip
        pq.write_table(table, tmp_path / f"camid_{name}.parquet")
    with open(tmp_path / "archive.npy", "wb") as archive:
        np.savez(archive, known[0])
    np.save(tmp_path / "flat.npy", np.ones(5))
    np.save(tmp_path / "pickle.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "nan.npy", np.full((50, 4), np.nan, np.float32))
    np.save(tmp_path / "good.npy", known[0])
    by = "cluster.camera_norm=true"
    for arguments, code, said in (
        ([tmp_path / "absent.parquet"], 3, "absent.parquet"),
        ([text], 3, "not a features file"),
        ([tmp_path / "words.parquet"], 3, "not a list of numbers"),
        ([tmp_path / "ragged.parquet"], 3, "differ in length"),
        ([tmp_path / "struct.parquet"], 3, "not a list of numbers"),
        ([tmp_path / "camid_text.parquet", by], 3, 'column "camid" is string, not integers'),
        ([tmp_path / "camid_none.parquet", by], 3, 'column "camid" lacks 1 of 300 values'),
        ([tmp_path / "camid_real.parquet", by], 3, 'column "camid" is double, not integers'),
        ([tmp_path / "archive.npy"], 3, "not a features file"),
        ([tmp_path / "flat.npy"], 3, "shape (5,)"),
        ([tmp_path / "pickle.npy"], 3, "not a features file"),
        ([tmp_path / "nan.npy"], 7, "50 of 50"),
        ([file, "--split", "nonsense"], 3, "no rows of split nonsense"),
        ([tmp_path / "good.npy", "cluster.camera_aware=true"], 2, "needs the camera"),
        ([tmp_path / "good.npy", "cluster.q=1e-5"], 7, "or q="),
        ([tmp_path / "good.npy", "cluster.p=1e-3", "cluster.q=8"], 2, "different rules"),
        ([tmp_path / "good.npy", "--out", tmp_path / "no" / "where"], 2, "no folder"),
        ([tmp_path / "good.npy", "--out", tmp_path], 2, "that is a folder"),
    ):
        out = [] if "--out" in arguments else ["--out", tmp_path / "labels.parquet"]
        exit_code, _, message = run(*arguments, *out)
        assert exit_code == code, (arguments, message)
        assert message.startswith("error: "), message
        assert said in message.replace("\n", " ")
    assert not (tmp_path / "labels.parquet").exists()


OTHER_COLUMNS = {
    "words": {"pid": [f"person_{n}" for n in range(300)], "camid": ["lobby"] * 300},
    "fractions": {"pid": np.arange(300) + 0.5},
    "beyond 64 bits": {"pid": np.full(300, 2**64 - 1, np.uint64)},
    "a split of numbers": {"split": np.arange(300)},
    "a split missing": {"split": [None, *["train"] * 299]},
}


@pytest.mark.parametrize("name", OTHER_COLUMNS)
def test_columns_that_are_not_needed_are_left_out__with_a_note(name, known, tmp_path, run):
    columns = OTHER_COLUMNS[name]
    path, out = tmp_path / "features.parquet", tmp_path / "labels.parquet"
    pq.write_table(pa.table({"feature": known[0].tolist(), **columns}), path)
    code, printed, message = run(path, "--out", out, "--json", *RULE)
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


def test_figures_of_cameras(file, known, tmp_path, run):
    code, printed, message = run(file, "--out", tmp_path / "labels.parquet", "--json", *RULE)
    assert code == 0 and "clusters follow cameras" not in message
    figures = json.loads(printed)
    assert figures["one_camera_share"] == 0 and figures["cross_camera_precision"] > 0.9
    # The same people, but each seen by one camera.
    alone = pa.table({"feature": known[0].tolist(), "camid": known[1] % 2})
    pq.write_table(alone, tmp_path / "alone.parquet")
    code, _, message = run(tmp_path / "alone.parquet", "--out", tmp_path / "labels.parquet", *RULE)
    assert code == 0 and "clusters follow cameras: 100% of them" in message
    assert "cluster.camera_norm=true" in message.replace("\n", " ")


def test_features_under_another_name__which_names_there_are(known, tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": ["a.jpg"] * 300, "embedding": known[0].tolist()}), path)
    with pytest.raises(DataError, match="it has no column \"feature\"; it has 'image', ") as error:
        read_features(path)
    assert """'embedding'; give a .parquet file with a list column "feature",""" in str(error.value)


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
    ("settings", "rule"),
    [
        ([], "q"),
        (["cluster.k1=10"], "q"),
        (["cluster.q=8"], "q"),
        (["cluster={p: 1e-3}"], "p"),
        (["cluster.eps=0.5"], "fixed"),
    ],
)
def test_rule_of_eps_is_q_unless_something_else_is_given(settings, rule):
    assert labelling.label_config(settings).cluster.eps_rule == rule


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["cluster.eps=0.5", "cluster.p=1e-3"], r"cluster\.p and cluster\.eps are different rules"),
        (["cluster.q=8", "cluster.eps_rule=fixed"], r"cluster\.q=8 has no effect"),
    ],
)
def test_two_rules_of_eps_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        labelling.label_config(settings)


def test_python_without_a_configuration_labels_as_the_command_does(known):
    alone = estimate_pseudo_labels(known[0][:120])
    config = labelling.label_config().cluster
    assert np.array_equal(alone.labels, estimate_pseudo_labels(known[0][:120], config).labels)
    assert alone.num_clusters == 8


def test_given_eps_is_used(file, tmp_path, run):
    settings = ["--json", "cluster.k1=10", "cluster.eps=0.55"]
    code, out, message = run(file, "--out", tmp_path / "labels.parquet", *settings)
    assert code == 0, message
    figures = json.loads(out)
    assert (figures["eps"], figures["p"]) == (0.55, None)


def test_figures_that_fail_leave_no_file(file, tmp_path, run, monkeypatch):
    monkeypatch.setattr(labelling, "cluster_quality", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(file, "--out", tmp_path / "labels.parquet", *RULE)
    assert list(tmp_path.iterdir()) == []


def lost_worker(*_, **__):
    from ray.exceptions import WorkerCrashedError

    raise WorkerCrashedError


def test_error_of_ray__exit_6(file, tmp_path, run, monkeypatch):
    monkeypatch.setattr(labelling, "ray_session", lost_worker)
    code, _, message = run(file, "--out", tmp_path / "labels.parquet", "--ray", *RULE)
    assert code == 6
    assert message.startswith("error: Ray stopped the run (")
    assert "continues" not in message
    assert "-v shows what Ray says." in message
    assert list(tmp_path.iterdir()) == []


def test_error_of_ray_while_adapting_says_how_to_go_on(tiny_config, monkeypatch):
    monkeypatch.setattr("pipelines.workers.session.ray_session", lost_worker)
    with pytest.raises(ClusterError, match="the same command continues it, and -v shows"):
        run_adaptation(tiny_config)


def test_error_of_ray_without_words_gets_its_name():
    from ray.exceptions import RayError

    with pytest.raises(ClusterError, match=r"\(RayError\); wait\."), ray_errors("wait."):
        raise RayError


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
