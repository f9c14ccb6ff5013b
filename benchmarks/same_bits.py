"""Whether a change of the code changes any result: hashes of what small runs leave.

    python -m benchmarks.same_bits > before.json          on the code as it was
    python -m benchmarks.same_bits --against before.json  on the code as it is

Every shipped recipe is cut to drawn images of 64x32, ResNet-18, two iterations and two workers.
Compared are the hash of each file in its journal (weights, features, pseudo-labels, clusters,
scores) and the loss curve. Hashes differ between machines and versions of torch, so compare on the
same. This takes some four minutes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.tables import json_lines, parse, say
from daal.drawn.domains import draw_domains
from pipelines.tools.shipped import read_config, shipped_names

CUT = [
    "source.layout=market1501", "target.layout=market1501", "network.backbone=resnet18",
    "network.weights=none", "network.frozen_stages=0", "input.height=64", "input.width=32",
    "iterations=2", "supervised_bound=false", "pretrain.epochs=1", "pretrain.steps_per_epoch=8",
    "pretrain.batch_source=16", "pretrain.optim.lr_new=0.01", "pretrain.optim.lr_backbone=0.01",
    "pretrain.optim.warmup_steps=0", "adapt.epochs=2", "adapt.steps_per_epoch=3",
    "adapt.batch_target=16", "cluster.k1=8", "cluster.q=3",
    "cluster.max_cluster_share=1", "report=false",
]  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--against", type=Path, help="What an earlier call has printed.")
    given = parse(options)
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch) / "images"
        draw_domains(images, num_train_ids=16, num_test_ids=6, images_per_camera=3, size=(64, 32))
        found = {name: left_by(name, images) for name in shipped_names()}
    if given.against is None:
        say(given, json.dumps(found, indent=1))
        return
    before = json.loads(given.against.read_text())
    for name, left in found.items():
        others = {what for what in left | before[name] if left.get(what) != before[name].get(what)}
        equal = f"other {sorted(others)}" if others else f"all {len(left)} equal"
        say(given, f"{name}: {equal}")
    sys.exit(found != before)


def left_by(recipe: str, images: Path) -> dict[str, Any]:
    """Hashes by file, and the loss terms of all steps that were told."""
    out = images.with_name(recipe)
    batch_source = min(8, read_config(recipe).adapt.batch_source)
    settings = [f"source.root={images}/source", f"target.root={images}/target", f"out={out}",
                f"adapt.batch_source={batch_source}", *CUT]  # fmt: skip
    command = [sys.executable, "-m", "pipelines.cli", "adapt", recipe, *settings]
    subprocess.run(command, check=True)
    hashes = {
        name: entry["sha256"]
        for line in json_lines(out / "journal.jsonl")
        for name, entry in line["files"].items()
        if not name.endswith("checkpoint.json")  # has the configuration, which may grow
    }
    # Which steps are told of depends on the time; the last of each training always is.
    losses = {
        event["stage"]: event["loss"]
        for event in json_lines(out / "metrics.jsonl")
        if "loss" in event and event["step"] == event["steps"]
    }
    return {**hashes, "losses": losses}


if __name__ == "__main__":
    main()
