"""`daal extract` of a data set, whose features `daal evaluate` scores, and of any images."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_run import FinishedRun, save_model

from daal.trained_model import load_trained
from pipelines import cli
from pipelines.search.extractor import Extractor

Daal = Callable[..., str]


@pytest.fixture
def daal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Daal:
    """The command in this process; what it writes to standard output."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["daal", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        output = capsys.readouterr()
        assert stopped.value.code == 0, output.err
        return output.out

    return run


def test_a_data_set__the_features_and_scores_that_its_run_has(
    finished_run: FinishedRun, tmp_path: Path, daal: Daal
) -> None:
    run, out = finished_run.out / "pretrain", tmp_path / "features.parquet"
    root = finished_run.config.target.root
    daal("extract", run / "checkpoint", root, "ray.num_workers=1", "--out", out)
    known, found = pq.read_table(run / "features"), pq.read_table(out)
    assert found["path"].to_pylist() == known["path"].to_pylist()
    features = [np.array(table["feature"].to_pylist()) for table in (known, found)]
    assert np.allclose(*features, atol=1e-5)
    scores = json.loads((run / "evaluation.json").read_text())
    assert json.loads(daal("evaluate", out))["map"] == pytest.approx(scores["map"])


def test_any_folder__is_rows_of_path_and_feature(
    ray_cluster: None, tmp_path: Path, daal: Daal
) -> None:
    save_model(tmp_path / "model")
    names = ["deep/er/b.png", "holiday 1.jpg", "行人\u3000一.jpg"]
    rng = np.random.default_rng(0)
    for name in names:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(path)
    (tmp_path / "images/broken.jpg").write_text("words")

    out = tmp_path / "features.parquet"
    daal("extract", tmp_path / "model", tmp_path / "images", "ray.num_workers=1",
         "--layout", "any", "--out", out, "max_bad_share=0.5")  # fmt: skip
    table = pq.read_table(out)
    assert table.column_names == ["path", "feature"]
    assert table["path"].to_pylist() == names
    paths = [tmp_path / "images" / name for name in names]
    _, features_NC, _ = Extractor(load_trained(tmp_path / "model")).of_images(paths)
    assert np.allclose(np.array(table["feature"].to_pylist()), features_NC, atol=1e-5)
