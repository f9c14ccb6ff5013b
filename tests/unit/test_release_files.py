"""Files of earlier releases can still be read; each release leaves its own in tests/golden."""

from pathlib import Path

import numpy as np
import pytest

from daal import checkpoint
from daal.load_config import check_config, load_config
from pipelines.run import artefacts
from pipelines.run.feature_files import read_features
from pipelines.run.folder import RunFolder

RELEASES = sorted(Path(__file__).parents[1].glob("golden/release_*"))


@pytest.fixture(params=RELEASES, ids=lambda folder: folder.name)
def release(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


def test_the_configuration_of_a_run(release: Path) -> None:
    config = load_config(release / "config.yaml")
    assert config.network.backbone == "resnet18" and config.ray.num_workers == 2


def test_a_checkpoint_and_the_configuration_in_it(release: Path) -> None:
    tensors, metadata = checkpoint.load(release / "checkpoint")
    assert "backbone.layer1.1.bn1.weight" in tensors
    assert metadata["stage"] == "iteration-01"
    assert check_config(metadata["config"]).cluster.eps == 0.5


def test_features(release: Path) -> None:
    read = read_features(release / "features.parquet")
    assert read.features_NC.shape == (6, 4) and np.isfinite(read.features_NC).all()
    assert read.pids is not None and read.camids is not None


def test_pseudo_labels(release: Path) -> None:
    labels_NP = artefacts.read_parts((release / "pseudo_labels.parquet").read_bytes())
    assert labels_NP.shape == (6, 1) and (labels_NP >= -1).all()


def test_the_journal(release: Path) -> None:
    stages = [line["stage"] for line in RunFolder(str(release)).journal()]
    assert stages[:3] == ["ingest/source", "ingest/target", "pretrain/train"]


def test_there_is_one() -> None:
    assert [folder.name for folder in RELEASES] == ["release_0_1"]
