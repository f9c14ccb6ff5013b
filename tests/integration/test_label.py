"""`daal label`: pseudo-labels of a features file, in a real process."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.estimate import estimate_pseudo_labels
from daal.config import ClusterConfig
from pipelines import cli

RULE = ["cluster.q=8", "cluster.k1=10"]
CONFIG = ClusterConfig(eps_rule="q", q=8, k1=10)


def daal_label(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "label", *map(str, arguments)],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip


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


def test_one_split_by_camera(file, known, tmp_path):
    out = tmp_path / "labels.parquet"
    result = daal_label(file, "--out", out, "--split", "train", "cluster.camera_aware=true", *RULE)
    assert result.returncode == 0, result.stderr
    assert "num_clusters" in result.stdout
    config = CONFIG.model_copy(update={"camera_aware": True})
    expected = estimate_pseudo_labels(known[0][:240], config, camids_N=known[2][:240])
    assert np.array_equal(pq.read_table(out)["pseudo_label"], expected.labels)


def test_array_file(known, tmp_path):
    np.save(tmp_path / "features.npy", known[0].astype(np.float64))
    result = daal_label(tmp_path / "features.npy", "--out", tmp_path / "labels.parquet", *RULE)
    assert result.returncode == 0, result.stderr
    table = pq.read_table(tmp_path / "labels.parquet")
    assert table.column_names == ["row", "pseudo_label"]
    assert np.array_equal(table["pseudo_label"], estimate_pseudo_labels(known[0], CONFIG).labels)


def test_on_ray(file, known, tmp_path):
    out = tmp_path / "labels.parquet"
    result = daal_label(file, "--out", out, "--ray", *RULE, "ray.num_workers=1")
    assert result.returncode == 0, result.stderr
    labels = pq.read_table(out)["pseudo_label"]
    assert np.array_equal(labels, estimate_pseudo_labels(known[0], CONFIG).labels)


def test_bad_input_names_the_thing_and_the_remedy(file, known, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.parquet"
    text.write_text("not parquet")
    pq.write_table(pa.table({"feature": ["a"]}), tmp_path / "words.parquet")
    pq.write_table(pa.table({"feature": [[1.0], [1.0, 2.0]]}), tmp_path / "ragged.parquet")
    np.save(tmp_path / "flat.npy", np.ones(5))
    np.save(tmp_path / "pickle.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "nan.npy", np.full((50, 4), np.nan, np.float32))
    np.save(tmp_path / "good.npy", known[0])
    for arguments, code, said in (
        ([tmp_path / "absent.parquet"], 3, "absent.parquet"),
        ([text], 3, "not a features file"),
        ([tmp_path / "words.parquet"], 3, "not a list of numbers"),
        ([tmp_path / "ragged.parquet"], 3, "differ in length"),
        ([tmp_path / "flat.npy"], 3, "shape (5,)"),
        ([tmp_path / "pickle.npy"], 3, "not a features file"),
        ([tmp_path / "nan.npy"], 7, "50 of 50"),
        ([file, "--split", "nonsense"], 3, "no rows of split nonsense"),
        ([tmp_path / "good.npy", "cluster.camera_aware=true"], 2, "needs the camera"),
        ([tmp_path / "good.npy", "cluster.q=1e-5"], 7, "or q="),
        ([tmp_path / "good.npy", "--out", tmp_path / "no" / "where"], 2, "no folder"),
    ):
        out = [] if "--out" in arguments else ["--out", tmp_path / "labels.parquet"]
        monkeypatch.setattr(sys, "argv", ["daal", "label", *map(str, [*arguments, *out])])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == code, arguments
        message = capsys.readouterr().err
        assert message.startswith("error: "), message
        assert said in message.replace("\n", " ")
    assert not (tmp_path / "labels.parquet").exists()
