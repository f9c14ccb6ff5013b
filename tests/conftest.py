"""One Ray for the whole test run, and a tiny drawn world."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from daal.config import Config

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Four logical CPUs, whatever the machine has."""
    import logging

    import ray

    import pipelines  # noqa: F401  makes its settings before Ray is imported

    ray.init(
        address="local", num_cpus=4, include_dashboard=True, dashboard_host="127.0.0.1",
        logging_level=logging.ERROR, log_to_driver=False,
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn domains of 12 training and 6 test identities, 64x32 pixels."""
    from daal.synthetic import draw_domains

    out = tmp_path_factory.mktemp("world")
    draw_domains(out, seed=0, num_train_ids=12, num_test_ids=6, images_per_camera=3, size=(64, 32))
    return out


@pytest.fixture
def tiny_config(tiny_world: Path, tmp_path: Path) -> Config:
    """A run of seconds on the tiny world: ResNet-18, one epoch, two workers."""
    from daal.load_config import load_config

    return load_config(
        None,
        [
            f"source.root={tiny_world}/source", f"target.root={tiny_world}/target",
            "source.published_counts=false", "target.published_counts=false",
            f"out={tmp_path}/run", "input.height=32", "input.width=16", "augment.pad=2",
            "network.backbone=resnet18", "network.weights=none", "network.identity_head=unit",
            "pretrain.epochs=1", "pretrain.batch_source=16", "pretrain.optim.lr_new=0.01",
            "pretrain.optim.lr_backbone=0.01",
            "adapt.epochs=1", "adapt.steps_per_epoch=3", "adapt.batch_source=8",
            "adapt.batch_target=8", "iterations=1",
            "cluster.eps_rule=q", "cluster.q=3", "cluster.max_cluster_share=1", "cluster.k1=8",
            "soft_labels.form=normalized", "mixed_precision=false",
        ],
    )  # fmt: skip
