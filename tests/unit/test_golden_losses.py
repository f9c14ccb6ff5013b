"""The first losses of every shipped recipe stay what they were.

tests/golden/losses/RECIPE.json has the loss terms of five steps of pretraining and of five steps of
adaptation, on drawn images of 64x32 with a random ResNet-18, in float32, in one process. A change
that is meant to alter results writes the files again:

    DAAL_WRITE_GOLDEN=1 python -m pytest tests/unit/test_golden_losses.py

CPUs differ in how they round, and each step multiplies the difference: at the recipes' own rates
the fifth loss differs by a tenth between AVX-512 and AVX2. So the rates are a twentieth here, where
it differs by 0.002 at most.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import Training

from cluster.centroids import centroids
from daal.data.augment import normalise
from daal.data.images import decode
from daal.data.layouts import load_records
from daal.data.plan import Plan
from daal.data.records import of_split
from daal.drawn.domains import draw_domains
from daal.load_config import load_config
from daal.nn.stripes import whole_and_stripes
from daal.optimizer import set_learning_rate
from pipelines.images.stream import FedBatch
from pipelines.tools.shipped import RECIPES, shipped_names
from pipelines.training.train_batch import Labels

GOLDEN = Path(__file__).parents[1] / "golden" / "losses"
TOLERANCE = 5e-3  # relative; of terms below 1, absolute
STEPS = 5
CUT = [
    "network.backbone=resnet18", "network.weights=none", "input.height=64", "input.width=32",
    "mixed_precision=false", "ray.num_workers=1", "pretrain.batch_source=8",
    "pretrain.steps_per_epoch=3", "pretrain.optim.warmup_steps=2", "adapt.batch_target=8",
    "adapt.steps_per_epoch=3",
]  # fmt: skip
NO_ROWS = np.empty(0, np.int64)


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    draw_domains(root, num_train_ids=5, num_test_ids=1, images_per_camera=2, size=(64, 32))
    return Domain(root / "source"), Domain(root / "target")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("recipe", shipped_names())
def test_losses_of_a_recipe(recipe, domains):
    found = losses_of(recipe, *domains)
    file = GOLDEN / f"{recipe}.json"
    if os.environ.get("DAAL_WRITE_GOLDEN"):
        file.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(file.read_text())
    for stage, steps in golden.items():
        for step, terms in enumerate(steps):
            assert found[stage][step] == pytest.approx(terms, TOLERANCE, TOLERANCE), (stage, step)


def losses_of(recipe, source, target):
    config = load_config(RECIPES / f"{recipe}.yaml", CUT)
    batch_source = min(4, config.adapt.batch_source)
    settings = [*CUT, f"adapt.batch_source={batch_source}"]
    for fit in ("pretrain", "adapt"):
        for rate in ("lr_backbone", "lr_new"):
            value = 0.05 * getattr(getattr(config, fit).optim, rate)
            settings.append(f"{fit}.optim.{rate}={value:.6g}")
    config = load_config(RECIPES / f"{recipe}.yaml", settings)
    labels = Labels(source.classes_N, int(source.classes_N.max()) + 1)
    network, pretraining = train(config, config.pretrain, 0, labels, source, source, {})

    # Cameras are cut apart, as clusters of a weak network are, and every ninth image is an outlier.
    clusters_N = np.unique(2 * target.classes_N + target.camids_N % 2, return_inverse=True)[1]
    clusters_N[::9] = -1
    with torch.inference_mode():
        features_NX = network.eval().extract(normalise(target.images_BCHW())).numpy()
    features_NC = whole_and_stripes(features_NX, config.network.stripes)[0]
    known = labels if batch_source else Labels(NO_ROWS, 0)
    labels = replace(
        known,
        pseudo_labels_N=clusters_N,
        features_NC=features_NC,
        centroids_KC=np.asarray(centroids(features_NC, clusters_N), np.float32),
        stripe_labels_NS=np.tile(clusters_N[:, None], config.network.stripes),
    )
    if not config.network.stripes:
        labels = replace(labels, stripe_labels_NS=None)
    start = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    _, adaptation = train(config, config.adapt, 1, labels, source, target, start)
    return {"pretrain": pretraining, "adapt": adaptation}


def train(config, fit, iteration, labels, source, target, start):
    """Five steps as `pipelines.training.train_loop` takes them on one worker."""
    clusters_N = NO_ROWS if labels.pseudo_labels_N is None else labels.pseudo_labels_N
    target_rows = np.flatnonzero(clusters_N >= 0)
    plan = Plan(
        config.seed, iteration, 2, fit.batch_source, fit.batch_target,
        np.arange(len(labels.source_N)), target_rows, clusters_N[target_rows], fit.images_per_id,
        steps_per_epoch=fit.steps_per_epoch or 0,
    )  # fmt: skip
    training = Training(config, labels, fit, iteration, start)
    training.network.to(memory_format=torch.channels_last)
    losses = []
    for step in range(STEPS):
        set_learning_rate(training.optimizer, fit, step, plan.steps_per_epoch, iteration)
        batch = plan.batch(step)
        images_BHWC = np.concatenate(
            [source.images_NHWC[batch.source], target.images_NHWC[batch.target]]
        )
        fed = FedBatch(step, torch.from_numpy(images_BHWC), batch.source, batch.target)
        terms = training.take([training.maker.on_host(fed, plan.epoch_of(step))])
        losses.append({name: float(f"{term:.7g}") for name, term in terms.as_dict().items()})
    return training.network, losses


class Domain:
    """The training images of a drawn domain."""

    def __init__(self, root: Path) -> None:
        records = of_split(load_records("market1501", root), "train")
        files = [(root / path).read_bytes() for path in records["path"].to_pylist()]
        self.images_NHWC = np.stack([decode(data, 64, 32) for data in files])
        self.classes_N = np.unique(records["pid"].to_numpy(), return_inverse=True)[1]
        self.camids_N = records["camid"].to_numpy().astype(np.int64)

    def images_BCHW(self):
        return torch.from_numpy(self.images_NHWC).permute(0, 3, 1, 2)
