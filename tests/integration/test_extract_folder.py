"""`daal extract` of images whose names say nothing."""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from daal import checkpoint
from daal.load_config import load_config
from daal.nn.network import DaalNetwork
from daal.trained_model import load_trained
from pipelines import cli
from pipelines.search.extractor import Extractor


def test_any_folder__is_rows_of_path_and_feature(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(None, ["input.height=32", "input.width=16", "network.backbone=resnet18",
                                "network.weights=none", "mixed_precision=false"])  # fmt: skip
    torch.manual_seed(0)
    network = DaalNetwork(config.network)
    metadata = {"config": config.model_dump(mode="json")}
    checkpoint.save(tmp_path / "model", network.state_dict(), metadata)
    names = ["deep/er/b.png", "holiday 1.jpg", "行人\u3000一.jpg"]
    rng = np.random.default_rng(0)
    for name in names:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(path)
    (tmp_path / "images/broken.jpg").write_text("words")

    out = tmp_path / "features.parquet"
    arguments = ["extract", tmp_path / "model", tmp_path / "images", "ray.num_workers=1",
                 "--layout", "any", "--out", out, "max_bad_share=0.5"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["daal", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0

    table = pq.read_table(out)
    assert table.column_names == ["path", "feature"]
    assert table["path"].to_pylist() == names
    paths = [tmp_path / "images" / name for name in names]
    _, features_NC, _ = Extractor(load_trained(tmp_path / "model")).of_images(paths)
    assert np.allclose(np.array(table["feature"].to_pylist()), features_NC, atol=1e-5)
