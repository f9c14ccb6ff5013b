"""A finished run of seconds, without Ray: random images, features and weights, but a whole folder.

Its names are hostile: what a page shows of them must be text.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from cluster.quality import cluster_quality
from daal.config import Config
from daal.data.records import IMAGE_TABLE, QUARANTINE_TABLE
from daal.evaluation import evaluate
from daal.load_config import load_config
from daal.nn.network import DaalNetwork
from pipelines.run import artefacts
from pipelines.run.folder import RunFolder
from pipelines.run.kept_config import keep_config

NAME = '<img src="x" onerror="alert(0)">$&'
SCRIPT = "query/<script>alert(1)</script>.jpg"
ROOT = "/data/<script>alert(2)</script>"
NUM_PEOPLE = 8  # in training, and as many others in query and gallery
CHANNELS = 512


def drawn_run(folder: Path, *settings: str, iterations: int = 2) -> RunFolder:
    """A run with a source, a supervised bound and `iterations` iterations."""
    if "network.attention.mode=none" not in settings:
        settings = ("network.attention.zero_init=false", *settings)
    config = load_config(None, [
        f'target.root="{ROOT}"', "source.root=/data/source", "input.height=64", "input.width=32",
        "network.backbone=resnet18", "network.weights=none", "supervised_bound=true",
        f"iterations={iterations}",
        f"out={json.dumps(str(folder / NAME))}", *settings,
    ])  # fmt: skip
    run = RunFolder(config.out)
    keep_config(run, config)
    rng = np.random.default_rng(0)
    tables = {}
    for domain in ("source", "target") if not config.target_only else ("target",):
        table = _images(domain, rng)
        tables[domain] = table
        quarantine = QUARANTINE_TABLE.empty_table()
        _stage(run, f"ingest/{domain}", {
            f"images/{domain}.parquet": artefacts.table_bytes(table),
            f"images/{domain}-quarantine.parquet": artefacts.table_bytes(quarantine),
        })  # fmt: skip
    target = tables["target"]
    rows: list[dict[str, Any]] = [_model(run, "pretrain", config, target, 1.2, rng)]
    for iteration in range(1, iterations + 1):
        stage = f"iteration-{iteration:02d}"
        clusters = _label(run, stage, target, rng)
        spread = 1.2 - 0.4 * iteration
        rows.append({**clusters, **_model(run, stage, config, target, spread, rng)})
    rows.append(_model(run, "supervised", config, target, 0.1, rng))
    by_name = {row["name"]: row for row in rows}
    selected = f"iteration-{iterations:02d}" if iterations else None
    run.write("summary.json", artefacts.json_bytes({
        "direct_transfer": by_name["pretrain"], "adapted": by_name.get(selected or ""),
        "selected": selected, "supervised": by_name["supervised"],
        "iterations": rows[1:-1], "seed": 0, "seconds": 12.0,
    }))  # fmt: skip
    return run


def _images(domain: str, rng: np.random.Generator) -> pa.Table:
    people, others = range(1, NUM_PEOPLE + 1), range(NUM_PEOPLE + 1, 2 * NUM_PEOPLE + 1)
    places = [(f"train/{pid}_{camid}_{n}.jpg", pid, camid, "train")
              for pid in people for camid in (1, 2) for n in range(3)]  # fmt: skip
    if domain == "target":
        for pid in others:
            path = SCRIPT if pid == others[0] else f"query/{pid}.jpg"
            places.append((path, pid, 1, "query"))
            places += [(f"gallery/{pid}_{camid}_{n}.jpg", pid, camid, "gallery")
                       for camid in (1, 2) for n in range(2)]  # fmt: skip
        places.append(("gallery/junk.jpg", -1, 2, "gallery"))
        places.append(("gallery/distractor.jpg", 0, 2, "gallery"))
    rows = []
    for path, pid, camid, split in places:
        colour = np.random.default_rng(pid + 1).integers(40, 215, 3)
        noise = rng.integers(-30, 30, (64, 32, 3))
        data = io.BytesIO()
        Image.fromarray((colour + noise).astype(np.uint8)).save(data, "JPEG")
        rows.append({"image": data.getvalue(), "path": path, "pid": pid, "camid": camid,
                     "split": split, "domain": domain})  # fmt: skip
    # As release 0.1 kept them: with the images, and without what it didn't know.
    kinds = [IMAGE_TABLE.field(name) for name in rows[0] if name != "image"]
    return pa.Table.from_pylist(rows, pa.schema([pa.field("image", pa.large_binary()), *kinds]))


def _label(
    run: RunFolder, stage: str, target: pa.Table, rng: np.random.Generator
) -> dict[str, Any]:
    pids = target["pid"].to_numpy()
    train = target["split"].to_numpy(zero_copy_only=False) == "train"
    labels = np.where(train, pids // 2, -1)  # two people a cluster, but for the first and last
    labels[rng.permutation(np.flatnonzero(train))[:5]] = -1
    camids = target["camid"].to_numpy()
    quality = cluster_quality(labels[train], pids[train], camids[train]).as_dict()
    of_iteration = {"notes": [], "agreement": 0.9}
    if stage == "iteration-01":
        of_iteration = {"notes": ["<b>merged</b>"]}
    figures = {"eps": [0.5], "silhouette": 0.4, "cross_camera_silhouette": 0.3,
               **of_iteration, **quality}  # fmt: skip
    _stage(run, f"{stage}/estimate", {
        f"{stage}/pseudo_labels.parquet": artefacts.table_bytes(
            artefacts.parts_table(target, "pseudo_label", labels[:, None])
        ),
        f"{stage}/clusters.json": artefacts.json_bytes(figures),
    })  # fmt: skip
    return {"name": stage, **figures}


def _model(
    run: RunFolder,
    stage: str,
    config: Config,
    target: pa.Table,
    spread: float,
    rng: np.random.Generator,
) -> dict[str, Any]:
    folder = f"{stage}/checkpoint"
    files: dict[str, Any] = {f"{folder}/checkpoint.json": b"{}"}
    if stage == f"iteration-{config.iterations:02d}":  # the others' weights are not looked at
        weights = {n: t.numpy() for n, t in DaalNetwork(config.network).state_dict().items()}
        metadata = {"stage": stage, "config": config.model_dump(mode="json")}
        files = dict(artefacts.checkpoint_bytes(folder, weights, metadata))
    _stage(run, f"{stage}/train", files)
    for step in range(1, 6):
        run.append("metrics.jsonl", {
            "time": 0.0, "stage": stage, "epoch": 1, "epochs": 1, "step": step, "steps": 5,
            "loss": {"source": 1 / step, "target": 2.0 * (stage != "pretrain"), "domain": 0.0,
                     "total": 1 / step}, "lr": 1e-3, "images_per_s": 9.0,
        })  # fmt: skip
    pids = target["pid"].to_numpy()
    centres = np.random.default_rng(1).standard_normal((pids.max() + 2, CHANNELS))
    features = centres[pids + 1] + 8 * spread * rng.standard_normal((len(pids), CHANNELS))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    data = artefacts.table_bytes(artefacts.features_table(target, features))
    _stage(run, f"{stage}/extract", {f"{stage}/features.parquet": data})
    split, camids = target["split"].to_numpy(zero_copy_only=False), target["camid"].to_numpy()
    query, gallery = split == "query", split == "gallery"
    scores = evaluate(
        features[query], pids[query], camids[query],
        features[gallery], pids[gallery], camids[gallery],
    ).as_dict()  # fmt: skip
    _stage(run, f"{stage}/evaluate", {f"{stage}/evaluation.json": artefacts.json_bytes(scores)})
    return {"name": stage, **scores}


def _stage(run: RunFolder, stage: str, files: dict[str, Any]) -> None:
    run.once(stage, list(files), lambda: files)
