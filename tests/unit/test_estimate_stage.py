"""Line 4 of Algorithm 1 as the driver runs it: what it writes, keeps and begins with."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from drawn_run import feature_blocks
from rich.console import Console

from cluster.estimate import estimate_pseudo_labels
from daal.config import Config
from daal.errors import LabelError
from daal.load_config import load_config
from pipelines.adapt import Adaptation
from pipelines.images.ingest import Images
from pipelines.run import label_health
from pipelines.run.feature_blocks import FeatureBlocks
from pipelines.run.folder import RunFolder, entry_of
from pipelines.run.stages import iteration_stage
from pipelines.show.progress import Progress
from pipelines.training import pseudo_labels
from pipelines.workers.resources import Resources

NUM_IMAGES = 300
PIDS = np.repeat(np.arange(1, 31), 10)
CAMIDS = np.arange(NUM_IMAGES) % 2


def features(made: Adaptation, noise: float) -> Callable[[], FeatureBlocks]:
    """In the run folder, as an extraction leaves them."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((31, 16))[PIDS] + noise * rng.standard_normal((NUM_IMAGES, 16))
    features = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    blocks = feature_blocks(f"noise-{noise}", made.target.table, features)
    for name, data in blocks.items():
        made.run.write(name, data)
    entries = {name: entry_of(data) for name, data in blocks.items()}
    return lambda: FeatureBlocks(made.run, entries, np.arange(NUM_IMAGES))


@pytest.fixture
def adaptation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An adaptation with these settings, whose labels are found in this process."""

    def here(features, config, eps, *, camids_N, source_N, **_):
        return estimate_pseudo_labels(features, config, eps, camids_N=camids_N)

    monkeypatch.setattr(pseudo_labels, "estimate_on_ray", here)

    def make(*settings: str) -> Adaptation:
        config: Config = load_config(None, [f"out={tmp_path}/run", "cluster.k1=10", *settings])
        resources = Resources(1, 1, 1, False, 1, 1, 1, 0)
        progress = Progress(console=Console(file=io.StringIO(), width=400))
        made = Adaptation(config, RunFolder(config.out), resources, progress)
        table = pa.table({
            "path": [f"{n}.jpg" for n in range(NUM_IMAGES)], "pid": PIDS, "camid": CAMIDS,
            "split": ["train"] * NUM_IMAGES, "domain": ["target"] * NUM_IMAGES,
        })  # fmt: skip
        made.target = Images(table, None)
        return made

    return make


def clusters(made: Adaptation, iteration: int) -> dict:
    return json.loads(made.run.read(iteration_stage(iteration).file("clusters.json")))


def test_kept_labels_agree_with_nothing__and_do_not_stop_the_run(adaptation) -> None:
    made = adaptation("cluster.eps=0.5", "cluster.min_clusters=20", "stop_agreement=0.95")
    first = made.estimate(iteration_stage(1), {}, features(made, 0.3), None)
    kept = made.estimate(iteration_stage(2), {}, features(made, 30.0), first)
    assert np.array_equal(kept, first)
    written = clusters(made, 2)
    assert written["notes"][0].startswith("kept the previous labels: DBSCAN found")
    assert written["agreement"] is written["silhouette"] is None
    assert written["num_clusters"] == clusters(made, 1)["num_clusters"]
    assert not label_health.converged(made.results.labellings[iteration_stage(2)], 0.95)
    assert "clustering found no new labels" in made.progress.console.file.getvalue()
    made.estimate(iteration_stage(3), {}, features(made, 0.3), kept)
    assert clusters(made, 3)["agreement"] == 1
    with pytest.raises(LabelError, match=r"DBSCAN found .* fewer than"):  # there are none to keep
        made.estimate(iteration_stage(4), {}, features(made, 30.0), None)
    assert label_health.converged(made.results.labellings[iteration_stage(3)], 0.95)


def test_each_iteration_begins_with_the_first_eps_before_its_steps_back(adaptation) -> None:
    made = adaptation("cluster.p=0.08")
    labels = made.estimate(iteration_stage(1), {}, features(made, 1.0), None)
    first = clusters(made, 1)
    assert first["eps"][0] < first["first_eps"][0]  # there were steps back
    made.estimate(iteration_stage(2), {}, features(made, 0.3), labels)
    assert clusters(made, 2)["eps"] == first["first_eps"]
    # The same after an interruption: all that it takes is in the run folder.
    again = adaptation("cluster.p=0.08")
    labels = again.estimate(iteration_stage(1), {}, features(again, 1.0), None)
    again.estimate(iteration_stage(2), {}, features(again, 0.3), labels)
    again.estimate(iteration_stage(3), {}, features(again, 0.3), labels)
    assert clusters(again, 3)["eps"] == first["first_eps"]


def test_figures_of_cameras_are_written(adaptation) -> None:
    made = adaptation("cluster.eps=0.5")
    made.estimate(iteration_stage(1), {}, features(made, 0.3), None)
    written = clusters(made, 1)
    assert written["one_camera_share"] == 0 and written["cross_camera_precision"] == 1
    assert written["cross_camera_share"] > written["cross_camera_chance"] > 0.5
    assert written["cross_camera_silhouette"] > 0.5
