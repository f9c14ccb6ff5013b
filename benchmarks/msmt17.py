"""The whole pipeline on drawn images in MSMT17's two layouts, at its size in every count.

    python -m benchmarks.msmt17 [--versions V1 V2] [--folder DIR] [--share 1.0] [--json]

32,621 training images of 1,041 people, 11,659 queries and 82,161 gallery images of 3,060 others, 15
cameras, with its folders and list files; V2 differs from V1 in its folders' names. A ResNet-18 at
64x32 from random weights, one epoch on a small drawn source, one iteration of one epoch: from the
folder to the scores. Memory is the largest PSS of the run and all of its Ray. `--share 0.01`
tries it out on a hundredth of the people.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.pseudo_labels import watched_memory
from benchmarks.tables import json_lines, parse, parser_of, tell
from daal.data.layout_checks import PUBLISHED
from daal.data.layouts import MSMT17_VERSIONS
from daal.drawn.domain_style import TARGET
from daal.drawn.domains import draw_domains, draw_person

SIZE = 64, 32
NUM_CAMERAS, NUM_TEST_IDS = 15, 3_060
NUM_TRAIN, NUM_TRAIN_IDS, NUM_QUERY, NUM_GALLERY, _ = PUBLISHED["msmt17"]
NUM_VAL = 2_373  # of the training images, in a list of their own
SETTINGS = [
    "target.layout=msmt17", "network.backbone=resnet18",
    "network.weights=none", "network.identity_head=unit", "input.height=64", "input.width=32",
    "pretrain.epochs=1", "adapt.epochs=1", "iterations=1", "pretrain.batch_source=64",
    "adapt.batch_source=64", "adapt.batch_target=64", "cluster.eps=0.5",
    "pretrain.optim.lr_new=0.01", "pretrain.optim.lr_backbone=0.01",
]  # fmt: skip


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("--versions", nargs="*", default=["V1", "V2"], choices=["V1", "V2"])
    options.add_argument("--folder", type=Path, help="keeps images and runs here")
    options.add_argument("--share", type=float, default=1.0)
    given = parse(options)
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path = given.folder or Path(scratch)
        draw_domains(folder / "drawn", num_train_ids=100, num_test_ids=2, size=SIZE)
        rows = [measure(folder, version, given.share) for version in given.versions]
    tell(given, "MSMT17's size, drawn images", rows)


def measure(folder: Path, version: str, share: float) -> dict[str, Any]:
    started = time.monotonic()
    root, out = folder / f"MSMT17_{version}", folder / f"run-{version}"
    counts = draw(root, version, share)
    drawing = time.monotonic() - started
    settings = [
        *SETTINGS, f"source.root={folder}/drawn/source", f"target.root={root}", f"out={out}",
    ]  # fmt: skip
    recipe = folder / "recipe.yaml"
    recipe.write_text("{}\n")
    command = [sys.executable, "-m", "pipelines.cli", "adapt", str(recipe), *settings]
    started = time.monotonic()
    with watched_memory() as peak:
        subprocess.run(command, check=True)
    stages = json_lines(out / "journal.jsonl")
    summary = json.loads((out / "summary.json").read_text())
    return {
        "name": version,
        **counts,
        "drawing_s": round(drawing),
        "run_s": round(time.monotonic() - started),
        "peak_GB": round(peak[0] / 1e9, 2),
        "disk_MB": round(sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e6),
        "images_MB": round(sum(f.stat().st_size for f in root.rglob("*.jpg")) / 1e6),
        "stages_s": {stage["stage"]: round(stage["seconds"], 1) for stage in stages},
        "mAP": summary["adapted"]["map"],
        "K": summary["iterations"][0]["num_clusters"],
    }


def draw(root: Path, version: str, share: float) -> dict[str, int]:
    """MSMT17's folders and lists; images that are there already are not drawn again."""
    folders = dict(zip(("train", "test"), MSMT17_VERSIONS[version == "V2"], strict=True))
    people = [max(2, round(share * number)) for number in (NUM_TRAIN_IDS, NUM_TEST_IDS)]
    train, query, gallery, val = (
        max(4 * people[0], round(share * number))
        for number in (NUM_TRAIN, NUM_QUERY, NUM_GALLERY, NUM_VAL)
    )
    names = {
        "train": list(islice(shots(people[0], 0), train)),
        "test": list(islice(shots(people[1], NUM_TRAIN_IDS), query + gallery)),
    }
    lists = {
        "train": names["train"][val:] if share == 1 else names["train"],
        "val": names["train"][:val] if share == 1 else names["train"][:1],
        "query": names["test"][:query],
        "gallery": names["test"][query:],
    }
    jobs = [
        (root / folders[part] / file_name(shot), shot) for part in names for shot in names[part]
    ]
    for folder in {path.parent for path, _ in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if not job[0].exists()]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        list(pool.map(write, missing, chunksize=256))
    for name, listed in lists.items():
        lines = [f"{file_name(shot)} {shot[1]}\n" for shot in listed]
        (root / f"list_{name}.txt").write_text("".join(lines))
    return {"train": len(names["train"]), "query": query, "gallery": gallery}


Shot = tuple[int, int, int, int]  # who is drawn; pid in its list; camera from 0; frame


def shots(num_people: int, first: int) -> Iterator[Shot]:
    """Everybody before camera 0, everybody before camera 1, and so on, again and again."""
    for number, camera in enumerate(cycle(range(NUM_CAMERAS))):
        for pid in range(num_people):
            yield first + pid + 1, pid, (camera + pid) % NUM_CAMERAS, number // NUM_CAMERAS


def file_name(shot: Shot) -> str:
    _, pid, camera, frame = shot
    return f"{pid:04d}/{pid:04d}_{frame:03d}_{camera + 1:02d}_0303morning_{frame:04d}_0.jpg"


def write(job: tuple[Path, Shot]) -> None:
    path, (person, _, camera, frame) = job
    seen_by = camera % len(TARGET.cameras) + 1
    moment = 25 * (frame * NUM_CAMERAS + camera + 1)  # cameras that look alike, at other times
    pixels = draw_person(TARGET, person, seen_by, moment, size=SIZE)
    Image.fromarray(pixels).save(path, quality=90)


if __name__ == "__main__":
    main()
