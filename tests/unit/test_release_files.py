"""Files of earlier releases can still be read; each release leaves its own in tests/golden."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from daal import checkpoint, old_config
from daal.config import fields
from daal.errors import ConfigError
from daal.load_config import check_config, flat, load_config
from daal.old_config import FIXED, IGNORED, JOINED
from pipelines.run import artefacts
from pipelines.run.feature_files import read_features
from pipelines.run.folder import RunFolder

RELEASES = Path(__file__).parents[1] / "golden"


def test_keys_of_release_0_1__with_the_values_that_are_fixed_now():
    old = flat(yaml.safe_load((RELEASES / "release_0_1/config.yaml").read_text()))
    moved = {name for names in JOINED.values() for name in names}
    moved |= {"cluster.eps_rule", "soft_labels.form"}
    moved |= {f"{training}.optim.decay_every_epochs" for training in ("pretrain", "adapt")}
    assert old.keys() - fields().keys() <= {*FIXED, *IGNORED, *moved}
    assert not {*FIXED, *IGNORED, *moved} & fields().keys()
    for key, value in FIXED.items():
        assert key not in old or old[key] == value


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ({"network": {"head_scale": 20}}, "network.identity_head", "linear"),
        ({"source": {"published_counts": True}}, "source.layout", "market1501"),
        ({"soft_labels": {"form": "literal"}}, "soft_labels.target_labels", "soft-literal"),
        ({"soft_labels": {"form": "literal", "target_labels": "hard"}},
         "soft_labels.target_labels", "hard"),
        ({"pretrain": {"accumulate": 2}, "adapt": {"accumulate": 2}, "ray": {"num_workers": 1}},
         "accumulate", 2),
        ({"pretrain": {"checkpoint_every_epochs": 4}, "adapt": {"checkpoint_every_epochs": 2}},
         "checkpoint_every_epochs", 2),
        ({"pretrain": {"epochs": 20, "optim": {"decay_every_epochs": 6}}},
         "pretrain.optim.decay_at_epochs", [6, 12, 18]),
        ({"adapt": {"optim": {"decay_every_epochs": 60, "decay_at_epochs": None}}},
         "adapt.optim.decay_at_epochs", [60, 120, 180, 240]),
        ({"adapt": {"optim": {"decay_every_epochs": 60, "decay_at_epochs": [9]}}},
         "adapt.optim.decay_at_epochs", [9]),
    ],
)  # fmt: skip
def test_a_setting_of_release_0_1__in_todays_words(given, key, value):
    assert flat(check_config(given).model_dump())[key] == value


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"network": {"head_scale": 30}}, "head_scale=30 can't be set any more: it is 20.0"),
        ({"adapt": {"accumulate": 2}}, "pretrain.accumulate and adapt.accumulate are one setting"),
    ],
)
def test_a_setting_of_release_0_1__that_would_be_lost_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        check_config(given, kept=True)


def test_a_value_that_is_lost__is_said_once_to_the_user_who_gave_it(tmp_path, caplog):
    old = "pretrain: {checkpoint_every_epochs: 4}\nadapt: {checkpoint_every_epochs: 2}\n"
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"target: {{published_counts: false}}\n{old}")
    old_config._warn.cache_clear()
    check_config(yaml.safe_load(recipe.read_text()), kept=True)
    assert caplog.messages == []
    for _ in range(2):
        load_config(recipe, ["ray.resize_seconds=5"])
    assert caplog.messages == [
        "target.published_counts is no setting any more and is ignored.",
        "ray.resize_seconds is no setting any more and is ignored.",
        "pretrain.checkpoint_every_epochs=4 and adapt.checkpoint_every_epochs=2 are one setting "
        "now, checkpoint_every_epochs=2; write that in their place.",
    ]


@pytest.mark.parametrize("name", ["release_0_1"])
def test_each_file_of_a_run(name):
    release = RELEASES / name
    assert load_config(release / "config.yaml").network.backbone == "resnet18"
    tensors, metadata = checkpoint.load(release / "checkpoint")
    assert "backbone.layer1.1.bn1.weight" in tensors and metadata["stage"] == "iteration-01"
    assert check_config(metadata["config"]).cluster.eps == 0.5
    read = read_features(release / "features.parquet")
    assert read.features_NC.shape == (6, 4) and np.isfinite(read.features_NC).all()
    assert read.pids is not None and read.camids is not None
    labels_NP = artefacts.read_parts((release / "pseudo_labels.parquet").read_bytes())
    assert labels_NP.shape == (6, 1) and (labels_NP >= -1).all()
    stages = [line["stage"] for line in RunFolder(str(release)).journal()]
    assert stages[:3] == ["ingest/source", "ingest/target", "pretrain/train"]
