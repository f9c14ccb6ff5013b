"""The whole pipeline on drawn images of large sets, from the folder to the scores.

    python -m benchmarks.large_sets [--sets NAME ...] [--folder DIR] [--json] [KEY=VALUE ...]

Sets: `msmt17-V1` and `-V2` have MSMT17's counts in its two layouts: 32,621 training images of
1,041 people, 11,659 queries and 82,161 gallery images of 3,060 others, 15 cameras. A number is a
set of so many images in the same layout, nine tenths of them for training, one in a hundred a
query. A ResNet-18 at 64x32 from random weights, one epoch on a small drawn source, one iteration
of 60 steps (MSMT17: of one epoch). Memory is PSS, sampled: the largest of the run with all of its
Ray, and the driver's own, for each stage. `--folder` keeps images and runs.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from benchmarks.tables import json_lines, parse, parser_of, tell
from daal.data.layout_checks import PUBLISHED
from daal.data.layouts import MSMT17_VERSIONS
from daal.drawn.domain_style import TARGET
from daal.drawn.domains import draw_domains, draw_person

SIZE = 64, 32
NUM_CAMERAS, NUM_TEST_IDS = 15, 3_060
NUM_TRAIN, NUM_TRAIN_IDS, NUM_QUERY, NUM_GALLERY, _ = PUBLISHED["msmt17"]
VAL_SHARE = 2_373 / NUM_TRAIN  # of the training images, in a list of their own
SETTINGS = [
    "target.layout=msmt17", "network.backbone=resnet18",
    "network.weights=none", "network.identity_head=unit", "input.height=64", "input.width=32",
    "pretrain.epochs=1", "adapt.epochs=1", "iterations=1", "pretrain.batch_source=64",
    "adapt.batch_source=64", "adapt.batch_target=64", "cluster.eps=0.5",
    "pretrain.optim.lr_new=0.01", "pretrain.optim.lr_backbone=0.01",
]  # fmt: skip


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("--sets", nargs="+", default=["msmt17-V1", "msmt17-V2"])
    options.add_argument("--folder", type=Path, help="keeps images and runs here")
    options.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the run, after ours")
    given = parse(options)
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path = given.folder or Path(scratch)
        draw_domains(folder / "drawn", num_train_ids=100, num_test_ids=2, size=SIZE)
        rows = [measure(folder, name, given.settings) for name in given.sets]
    tell(given, "Drawn images, from the folder to the scores", rows)


def measure(folder: Path, name: str, more: list[str]) -> dict[str, Any]:
    started = time.monotonic()
    root, out = folder / f"set-{name}", folder / f"run-{name}"
    if name.startswith("msmt17"):
        counts, version, steps = (NUM_TRAIN, NUM_QUERY, NUM_GALLERY), name[-2:], []
    else:
        number = int(name)
        counts = number * 9 // 10, number // 100, number - number * 9 // 10 - number // 100
        version, steps = "V2", ["adapt.steps_per_epoch=60"]
    draw(root, version, *counts)
    drawing = time.monotonic() - started
    settings = [
        *SETTINGS, f"source.root={folder}/drawn/source", f"target.root={root}", f"out={out}",
        *steps, *more,
    ]  # fmt: skip
    recipe = folder / "recipe.yaml"
    recipe.write_text("{}\n")
    command = [sys.executable, "-m", "pipelines.cli", "adapt", str(recipe), *settings]
    started = time.monotonic()
    with subprocess.Popen(command) as driver, memory_of(driver.pid) as seen:
        if driver.wait():
            raise SystemExit(driver.returncode)
    journal = json_lines(out / "journal.jsonl")
    stages = {line["stage"]: round(line["seconds"], 1) for line in journal}
    summary = json.loads((out / "summary.json").read_text())
    image_bytes = sum(file.stat().st_size for file in root.rglob("*.jpg"))
    return {
        "name": name,
        **dict(zip(("train", "query", "gallery"), counts, strict=True)),
        "drawing_s": round(drawing),
        "run_s": round(time.monotonic() - started),
        "peak_GB": round(max(total for _, total, _ in seen) / 1e9, 2),
        "driver_GB": round(max(own for _, _, own in seen) / 1e9, 3),
        "run_MB": megabytes(out),
        "store_MB": megabytes(folder / "daal-images"),
        "images_MB": round(image_bytes / 1e6),
        "stages_s": stages,
        "stages_GB": by_stage(seen, journal),
        "mAP": summary["adapted"]["map"],
        "K": summary["iterations"][0]["num_clusters"],
    }


def megabytes(folder: Path) -> int:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6)


Seen = list[tuple[float, int, int]]  # seconds since the epoch; PSS of all processes, of the first


@contextmanager
def memory_of(pid: int) -> Iterator[Seen]:
    """Samples of the PSS of a process and all its descendants, with 2 % of a core at most."""
    seen: Seen = []
    done = threading.Event()

    def watch() -> None:
        spent, first = 0.0, psutil.Process(pid)
        while not done.wait(max(0.2, 50 * spent)):
            start, each = time.thread_time(), dict[int, int]()
            with suppress(psutil.Error):  # gone
                for process in [first, *first.children(recursive=True)]:
                    with suppress(psutil.Error):
                        each[process.pid] = process.memory_full_info().pss
                seen.append((time.time(), sum(each.values()), each.get(pid, 0)))
            spent = time.thread_time() - start

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def by_stage(seen: Seen, journal: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """The largest PSS in each stage, of all processes and of the driver, in GB."""
    found = dict[str, tuple[float, float]]()
    for line in journal:
        begun, ended = line["started"], line["started"] + line["seconds"]
        some = [(total, own) for at, total, own in seen if begun <= at <= ended]
        if some:
            totals, owns = zip(*some, strict=True)
            found[line["stage"]] = round(max(totals) / 1e9, 2), round(max(owns) / 1e9, 3)
    return found


def draw(root: Path, version: str, train: int, query: int, gallery: int) -> None:
    """MSMT17's folders and lists; images that are there already are not drawn again.

    Each person has as many images as in MSMT17.
    """
    folders = dict(zip(("train", "test"), MSMT17_VERSIONS[version == "V2"], strict=True))
    people = [
        max(2, round(NUM_TRAIN_IDS * train / NUM_TRAIN)),
        max(2, round(NUM_TEST_IDS * (query + gallery) / (NUM_QUERY + NUM_GALLERY))),
    ]
    val = max(1, round(VAL_SHARE * train))
    names = {
        "train": list(islice(shots(people[0], 0), train)),
        "test": list(islice(shots(people[1], people[0]), query + gallery)),
    }
    lists = {
        "train": names["train"][val:],
        "val": names["train"][:val],
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
