"""Algorithm 1 on real Ray with a tiny drawn world: two workers, streams, tasks."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from rich.console import Console
from tiny_run import FinishedRun

from cluster.estimate import estimate_pseudo_labels
from cluster.outliers import in_all_parts
from cluster.quality import cluster_quality
from daal import checkpoint
from daal.config import AdaptOptimConfig, AttentionConfig, Config, RayConfig
from daal.data.plan import Plan
from daal.errors import ClusterError, ConfigError, LabelError
from daal.load_config import apply_overrides, check_config
from daal.optimizer import make_optimizer, set_learning_rate
from daal.step import mixed_precision, train_step
from pipelines.adapt import Adaptation
from pipelines.images.ingest import ingest
from pipelines.images.pixels import Images, Pixels, decode_rows
from pipelines.images.stream import FedBatch
from pipelines.run.folder import RunFolder
from pipelines.run.kept_config import keep_config
from pipelines.run.results import KEPT_NOTE, Clusters
from pipelines.run.stages import iteration_stage
from pipelines.show.progress import Progress
from pipelines.tools.validate import validate
from pipelines.training.evaluate import evaluate_file
from pipelines.training.fit import Trainer, class_labels
from pipelines.training.train_batch import BatchMaker
from pipelines.training.train_loop import build_network
from pipelines.workers.group import Workers
from pipelines.workers.session import ray_session

pytestmark = pytest.mark.ray


def quiet() -> Progress:
    return Progress(console=Console(file=io.StringIO()))


def run(config: Config, output: io.StringIO | None = None) -> dict:
    folder = RunFolder(config.out)
    keep_config(folder, config)
    progress = Progress(
        lambda event: folder.append("metrics.jsonl", event), Console(file=output or io.StringIO())
    )
    with ray_session(config.ray) as resources:
        return Adaptation(config, folder, resources, progress).adapt()


def test_adapt__leaves_its_artefacts_resumes_and_does_nothing_twice(
    finished_run: FinishedRun,
) -> None:
    config, out = finished_run.config, finished_run.out
    summary = json.loads((out / "summary.json").read_text())
    assert {"map", "rank1"} <= summary["adapted"].keys()
    files = {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()}
    files = {file for file in files if not file.startswith("tensorboard/")}
    stages = ("pretrain", "iteration-01", "supervised")
    stage = ["checkpoint/weights.safetensors", "checkpoint/checkpoint.json", "features.parquet",
             "evaluation.json"]  # fmt: skip
    assert files == {
        "config.yaml", "journal.jsonl", "metrics.jsonl", "summary.json",
        "report.html", "tracking.json", ".lock",
        "images/source.parquet", "images/source-quarantine.parquet",
        "images/target.parquet", "images/target-quarantine.parquet",
        *(f"{name}/{file}" for name in stages for file in stage),
        "iteration-01/pseudo_labels.parquet", "iteration-01/clusters.json",
    }  # fmt: skip
    features = pq.read_table(out / "iteration-01/features.parquet")
    assert features.schema.field("feature").type.list_size == 512
    vectors = np.array(features["feature"].to_pylist())
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    tensors, metadata = checkpoint.load(out / "iteration-01/checkpoint")
    assert tensors["target_head.fc.weight"].shape[0] == summary["iterations"][0]["num_clusters"]
    assert metadata["stage"] == "iteration-01"
    losses = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in line and line["stage"] == "iteration-01" for line in losses)

    # Finished: the same command runs no stage.
    journal = (out / "journal.jsonl").read_text()
    assert run(config)["adapted"] == summary["adapted"]
    assert (out / "journal.jsonl").read_text() == journal

    # A damaged artefact is made again, and nothing before it.
    scores = out / "iteration-01/evaluation.json"
    scores.write_text(scores.read_text()[:-20])
    assert run(config)["adapted"] == summary["adapted"]
    again = (out / "journal.jsonl").read_text()[len(journal) :].splitlines()
    assert [json.loads(line)["stage"] for line in again] == ["iteration-01/evaluate"]

    # Other settings on the same folder are refused, by name.
    with pytest.raises(ConfigError, match="seed was 0 and is 1"):
        run(config.model_copy(update={"seed": 1}))


def test_adapt__without_a_source__its_result_chosen_without_identities(
    ray_cluster: None, two_workers: Config
) -> None:
    config = check_config(apply_overrides(two_workers.model_dump(), [
        'source.root=""', "adapt.batch_source=0", "iterations=2", "cluster.outliers=singletons",
        "network.target_head=memory", "adapt.images_per_id=2", "loss.triplet_weight=1",
        "select=silhouette",
    ]))  # fmt: skip
    assert not [text for text in validate(config).warnings if text.startswith("source")]
    summary = run(config)
    out = Path(config.out)
    assert not (out / "images/source.parquet").exists()
    tensors, _ = checkpoint.load(out / "iteration-02/checkpoint")
    assert not any(name.startswith(("source_head", "domain_head")) for name in tensors)
    # Images that no cluster took are clusters of their own in training, and outliers in figures.
    labels = pq.read_table(out / "iteration-02/pseudo_labels.parquet")["pseudo_label"].to_numpy()
    split = pq.read_table(out / "images/target.parquet")["split"].to_numpy(zero_copy_only=False)
    num_outliers = int((labels[split == "train"] < 0).sum())
    num_clusters = summary["iterations"][1]["num_clusters"]
    assert num_outliers > 0
    assert len(tensors["target_head.memory_KC"]) == num_clusters + num_outliers
    losses = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert any("triplet" in line.get("loss", {}) for line in losses)

    # Each model is judged by the labels made from its features, across cameras: those of the next
    # iteration.
    models = ["iteration-01", "iteration-02"]
    judged = {
        model: json.loads((out / folder / "clusters.json").read_text())["cross_camera_silhouette"]
        for model, folder in zip(models, ["iteration-02", "final"], strict=True)
    }
    assert summary["selected"] == max(models, key=lambda model: judged[model])
    rows = {row["name"]: row for row in summary["iterations"]}
    assert list(rows) == models
    assert summary["adapted"]["map"] == rows[summary["selected"]]["map"]


@pytest.mark.nightly
def test_adapt__as_udap_does__and_stops_when_the_labels_stay_the_same(
    ray_cluster: None, two_workers: Config
) -> None:
    config = check_config(apply_overrides(two_workers.model_dump(), [
        "adapt.batch_source=0", "adapt.images_per_id=2", "loss.target_weight=0",
        "loss.triplet_weight=1", "loss.triplet_margin=0.5", "cluster.source_weight=0.1",
        "network.attention.mode=none", "network.specific_branch=false",
        "iterations=3", "stop_agreement=1e-6",
    ]))  # fmt: skip
    output = io.StringIO()
    summary = run(config, output)
    out = Path(config.out) / "iteration-01"
    scores = evaluate_file(out / "features.parquet")
    assert summary["adapted"]["map"] == pytest.approx(scores.map)
    distance = pq.read_table(out / "source_distance.parquet")["source_distance"].to_numpy()
    features = pq.read_table(out.with_name("pretrain") / "features.parquet")
    assert len(distance) == len(features) and 0 <= distance.min() < distance.max() == 1
    labels = pq.read_table(out / "pseudo_labels.parquet")["pseudo_label"].to_numpy()
    train = features["split"].to_numpy(zero_copy_only=False) == "train"
    vectors = np.stack(features["feature"].to_numpy())[train]
    again = estimate_pseudo_labels(vectors, config.cluster, source_N=distance[train])
    assert np.array_equal(again.labels, labels[train])
    losses = [json.loads(line) for line in (out.parent / "metrics.jsonl").open()]
    assert any(line.get("loss", {}).get("triplet", 0) > 0 for line in losses)

    clusters = json.loads((out.with_name("iteration-02") / "clusters.json").read_text())
    assert clusters["agreement"] > 1e-6 and "converged" in output.getvalue()
    assert [row["name"] for row in summary["iterations"]] == ["iteration-01"]
    assert summary["selected"] == "iteration-01"
    assert not (out.with_name("iteration-02") / "checkpoint").exists()


@pytest.mark.nightly
def test_adapt__as_ssg_does__each_part_of_the_body_is_clustered_apart(
    ray_cluster: None, two_workers: Config
) -> None:
    config = check_config(apply_overrides(two_workers.model_dump(), [
        "adapt.batch_source=0", "adapt.images_per_id=2", "loss.target_weight=0",
        "loss.triplet_weight=1", "loss.triplet_margin=0.5", "cluster.source_weight=0.1",
        "network.attention.mode=none", "network.specific_branch=false", "flip_test=true",
        "network.last_stride=1", "network.stripes=2", "iterations=2", "select=silhouette",
    ]))  # fmt: skip
    summary = run(config)
    out = Path(config.out) / "iteration-01"
    scores = evaluate_file(out.with_name(summary["selected"]) / "features.parquet")
    assert summary["adapted"]["map"] == pytest.approx(scores.map)
    distance = pq.read_table(out / "source_distance.parquet").drop_columns(["path"])
    features = pq.read_table(out.with_name("pretrain") / "features.parquet")
    train = features["split"].to_numpy(zero_copy_only=False) == "train"
    vectors = np.stack(features["feature"].to_numpy())[train]
    parts = np.split(vectors, 3, axis=1)
    again = [
        estimate_pseudo_labels(
            part / np.linalg.norm(part, axis=1, keepdims=True),
            config.cluster,
            source_N=column.to_numpy()[train],
        )
        for part, column in zip(parts, distance.columns, strict=True)
    ]
    labels = pq.read_table(out / "pseudo_labels.parquet")
    names = ["pseudo_label", "pseudo_label_1", "pseudo_label_2"]
    found = np.stack([labels[name].to_numpy()[train] for name in names], axis=1)
    assert np.array_equal(
        found, in_all_parts(np.stack([part.labels for part in again], axis=1), "cluster.q")
    )
    assert (found >= 0).any()
    # eps of the first iteration is kept for each part.
    first, second = (
        json.loads((out.with_name(name) / "clusters.json").read_text())["eps"]
        for name in ("iteration-01", "iteration-02")
    )
    assert first == second == [part.eps for part in again] and len(set(first)) == 3


def test_two_workers__equal_one_process_on_the_same_batches(
    ray_cluster: None, two_workers: Config
) -> None:
    """DDP averages gradients, and BatchNorm is over both workers' 8 images: one batch of 16."""
    network_config = two_workers.network.model_copy(
        update={"attention": AttentionConfig(zero_init=False)}
    )
    optim = AdaptOptimConfig(lr_backbone=0.01, lr_new=0.01)
    config = two_workers.model_copy(
        update={
            "network": network_config,
            # One step: training itself blows up differences of rounding, tenfold a step here.
            "adapt": two_workers.adapt.model_copy(update={"optim": optim, "steps_per_epoch": 1}),
        }
    )
    with ray_session(config.ray) as resources:
        tables = [ingest(config, "source")[0], ingest(config, "target")[0]]
        source, target = (Images(table, ray.put(table)) for table in tables)
        rng = np.random.default_rng(0)
        features = rng.standard_normal((len(target.table), 512)).astype(np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        pseudo_labels = np.where(
            target.table["split"].to_numpy(zero_copy_only=False) == "train",
            np.arange(len(features)) % 5, -1,
        )  # fmt: skip
        centroids = np.stack([features[pseudo_labels == k].mean(0) for k in range(5)])
        with Workers(config, RunFolder(config.out), resources, quiet()) as workers:
            pixels = Pixels(config, resources, lambda text: None)
            trained = Trainer(config, workers, pixels, quiet()).adapt(
                "ddp", 1, source, target, features, pseudo_labels[:, None], start={}
            )

        labels = class_labels(source)[0]
        labels = type(labels)(
            labels.source_N, labels.num_source_ids, pseudo_labels, features, centroids
        )
        rows = np.flatnonzero(pseudo_labels >= 0)
        plan = Plan(
            config.seed, 1, 1, 8, 8, class_labels(source)[1], rows, pseudo_labels[rows],
            steps_per_epoch=config.adapt.steps_per_epoch,
        )  # fmt: skip
        maker = BatchMaker(labels, config, 1, torch.device("cpu"))
        network = build_network(config, labels, {}).to(memory_format=torch.channels_last).train()
        untrained = {n: p.detach().clone().numpy() for n, p in network.named_parameters()}
        optimizer = make_optimizer(network, config.adapt.optim)
        for step in range(plan.num_steps):
            set_learning_rate(optimizer, config.adapt, step, plan.steps_per_epoch)
            whole = plan.batch(step)
            images = np.concatenate([
                decode_rows(source.reference, whole.source, config.input),
                decode_rows(target.reference, whole.target, config.input),
            ])  # fmt: skip
            fed = FedBatch(step, torch.tensor(images), whole.source, whole.target)
            batch = maker.on_device(maker.on_host(fed, epoch=0))
            train_step(
                network, [batch], optimizer, config.loss, torch.zeros(()), lambda flag: None,
                mixed_precision(torch.device("cpu"), False),
            )  # fmt: skip
    alone = dict(network.named_parameters())
    assert set(alone) <= set(trained)
    for name, parameter in alone.items():
        assert np.allclose(trained[name], parameter.detach().numpy(), atol=1e-5), name
        assert not np.array_equal(trained[name], untrained[name]), f"{name} was never trained"


def test_too_small_cluster__is_refused_with_the_numbers(ray_cluster: None) -> None:
    with pytest.raises(ClusterError, match=r"has 4 CPUs, but the run needs 10"):
        with ray_session(RayConfig(num_workers=8, data_cpus=2)):
            pass
    with pytest.raises(ClusterError, match=r"has 0 GPUs.*need 2"):
        with ray_session(RayConfig(num_workers=2, use_gpu=True)):
            pass


def test_no_cluster__keeps_the_previous_labels_or_says_what_to_change(
    ray_cluster: None, tiny_config: Config
) -> None:
    settings = tiny_config.cluster.model_copy(update={"min_samples": 500})
    config = tiny_config.model_copy(update={"cluster": settings})
    with ray_session(config.ray) as resources:
        adaptation = Adaptation(config, RunFolder(config.out), resources, quiet())
        adaptation.read_images()
        features = np.random.default_rng(0).standard_normal((len(adaptation.target.table), 8))
        features = features.astype(np.float32)
        with pytest.raises(LabelError, match="min_samples"):
            adaptation.estimate(iteration_stage(1), {}, lambda: features, None)
        previous = np.arange(len(features)) % 4
        found = cluster_quality(np.arange(4)).as_dict()
        adaptation.labellings[iteration_stage(1)] = Clusters(eps=[0.3], **found)
        labels = adaptation.estimate(iteration_stage(2), {}, lambda: features, previous[:, None])
        assert np.array_equal(labels, previous[:, None])
        kept = adaptation.labellings[iteration_stage(2)]
        assert kept.eps == [0.3] and kept.kept and kept.notes[0].startswith(KEPT_NOTE)


def test_broken_images__are_set_aside_with_the_reason(
    ray_cluster: None, tiny_config: Config, tmp_path: Path
) -> None:
    import shutil

    root = tmp_path / "damaged"
    shutil.copytree(tiny_config.target.root, root)
    victims = sorted((root / "bounding_box_train").glob("*.jpg"))[:2]
    victims[0].write_bytes(b"")
    victims[1].write_bytes(victims[1].read_bytes()[:200])
    target = tiny_config.target.model_copy(update={"root": str(root)})
    config = tiny_config.model_copy(update={"target": target})
    table, quarantine = ingest(config, "target")
    assert quarantine["path"].to_pylist() == [f"bounding_box_train/{file.name}" for file in victims]
    assert all(quarantine["reason"].to_pylist())
    assert not set(quarantine["path"].to_pylist()) & set(table["path"].to_pylist())
    with pytest.raises(Exception, match="can't be read, e.g. 'bounding_box_train"):
        ingest(config.model_copy(update={"max_bad_share": 0.0}), "target")
