"""Algorithm 1 on real Ray with a tiny drawn world: two workers, streams, tasks."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from tiny_run import FinishedRun, changed

from cluster.estimate import estimate_pseudo_labels
from cluster.outliers import in_all_parts
from daal import checkpoint
from daal.config import Config
from daal.errors import ConfigError
from pipelines.adapt import Adaptation
from pipelines.commands.run import run_adaptation
from pipelines.run.feature_blocks import block_files
from pipelines.run.folder import RunFolder
from pipelines.run.kept_config import keep_config
from pipelines.show.progress import Progress
from pipelines.tools.evaluate_file import evaluate_file
from pipelines.tools.validate import validate
from pipelines.workers.session import ray_session

pytestmark = pytest.mark.ray


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
    curves = {file for file in files if file.startswith("tensorboard/")}
    stages = ("pretrain", "iteration-01", "supervised")
    num_images = pq.read_table(out / "images/target.parquet").num_rows
    stage = ["checkpoint/weights.safetensors", "checkpoint/checkpoint.json", "evaluation.json",
             *block_files("features", num_images)]  # fmt: skip
    assert curves and files - curves == {
        "config.yaml", "journal.jsonl", "metrics.jsonl", "summary.json",
        "report.html", "tracking.json", ".lock",
        "images/source.parquet", "images/source-quarantine.parquet",
        "images/target.parquet", "images/target-quarantine.parquet",
        "images/source-store.json", "images/target-store.json",
        *(f"{name}/{file}" for name in stages for file in stage),
        "iteration-01/pseudo_labels.parquet", "iteration-01/clusters.json",
    }  # fmt: skip
    features = pq.read_table(out / "iteration-01/features")
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


def test_json_lines_and_nothing_else__then_quiet(
    finished_run: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in finished_run.stdout.splitlines()]
    assert lines[-1] == json.loads((finished_run.out / "summary.json").read_text())
    kept = (finished_run.out / "metrics.jsonl").read_text().splitlines()
    assert lines[:-1] == [json.loads(line) for line in kept]
    assert any("loss" in line for line in lines) and any("num_clusters" in line for line in lines)
    run_adaptation(finished_run.config, quiet=True)  # finished, and shown again
    output = capsys.readouterr()
    assert "direct transfer" in output.out and "iteration-01" in output.out
    for line in (finished_run.stderr + output.err).splitlines():
        assert "note: " in line or "warning: " in line


def test_adapt__without_a_source__its_result_chosen_without_identities(
    ray_cluster: None, tiny_config: Config
) -> None:
    config = changed(tiny_config,
        'source.root=""', "adapt.batch_source=0", "iterations=2", "cluster.outliers=singletons",
        "network.target_head=memory", "adapt.images_per_id=2", "loss.triplet_weight=1",
        "select=silhouette",
    )  # fmt: skip
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
def test_adapt__as_ssg_does__parts_of_the_body_clustered_apart__until_labels_stay_the_same(
    ray_cluster: None, two_workers: Config
) -> None:
    config = changed(
        two_workers, "adapt.batch_source=0", "adapt.images_per_id=2", "loss.target_weight=0",
        "loss.triplet_weight=1", "loss.triplet_margin=0.5", "cluster.source_weight=0.1",
        "network.attention.mode=none", "network.specific_branch=false", "flip_test=true",
        "network.last_stride=1", "network.stripes=2", "iterations=3", "stop_agreement=1e-6",
    )  # fmt: skip
    output = io.StringIO()
    summary = run(config, output)
    out = Path(config.out) / "iteration-01"
    assert summary["adapted"]["map"] == pytest.approx(evaluate_file(out / "features").map)

    # Labels are those of each part of the features alone.
    distance = pq.read_table(out / "source_distance.parquet").drop_columns(["path"])
    features = pq.read_table(out.with_name("pretrain") / "features")
    train = features["split"].to_numpy(zero_copy_only=False) == "train"
    parts = np.split(np.stack(features["feature"].to_numpy())[train], 3, axis=1)
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
    expected = in_all_parts(np.stack([part.labels for part in again], axis=1), "cluster.q")
    assert np.array_equal(found, expected) and (found >= 0).any()

    # The second labels are the first, by the same eps of each part: the run ends.
    first, second = (
        json.loads((out.with_name(name) / "clusters.json").read_text())
        for name in ("iteration-01", "iteration-02")
    )
    assert first["eps"] == second["eps"] == [part.eps for part in again]
    assert len(set(first["eps"])) == 3
    assert second["agreement"] > 1e-6 and "converged" in output.getvalue()
    assert [row["name"] for row in summary["iterations"]] == ["iteration-01"]
    assert summary["selected"] == "iteration-01"
    assert not (out.with_name("iteration-02") / "checkpoint").exists()
