"""Reading image sets into their store: speed, a second start, the same images from anywhere.

    python -m benchmarks.image_sets [--json] [--images 20000] [--s3]

Each row has a figure, its baseline and their ratio. The baseline of reading is a plain loop in two
processes that reads and checks the same files: of tars, each process goes through half of them. The
driver's growth is of its largest resident memory, from 100,000 to 300,000 images, each in a fresh
process that lists a folder, checks it, and makes the tables, labels and plan of a run. `--s3` reads
the set from a server of moto, too, with real HTTP, and needs the package `moto[server]`.
"""

import io
import json
import logging
import multiprocessing
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"  # a Ray of our own, on loopback, gone in minutes

import numpy as np
import ray
from PIL import Image
from pyarrow import fs

from benchmarks.s3_server import BUCKET, s3_server
from benchmarks.small_run import scratch_folder
from benchmarks.tables import parse, parser_of, tell
from daal.data.images import checked, read
from daal.data.layout_checks import check_names, passed_over
from daal.data.plan import Plan
from daal.data.sources import load_set
from daal.load_config import load_config
from pipelines.images import store as stores
from pipelines.images.ingest import IMAGES_PER_SHARD, Images, ingest
from pipelines.images.store import ImageStore
from pipelines.run import artefacts
from pipelines.training.fit import class_labels
from pipelines.workers.session import silence_ray_data

CORES = 2
TARS = 8
DRIVERS = 100_000, 300_000  # images
FEW = 1_000  # images of the set in the bucket: each is a request of moto


def write_images(folder: Path, number: int) -> None:
    """Images of 64 x 32 pixels by six cameras, 16 of a person."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for n in range(number):
        coarse = generator.integers(0, 256, (8, 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((32, 64), Image.Resampling.BILINEAR)
        image.save(folder / f"{1 + n // 16}_{n % 6}_{n}.jpg", quality=90)


def plain_loop(paths: list[Path]) -> int:
    return sum(read(path)[1] is None for path in paths)


def plain_tar_loop(paths: list[Path]) -> int:
    good = 0
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                data = stream.read() if stream else b""
                if member.name.endswith(".json"):
                    json.loads(data)
                else:
                    good += checked(data)[1] is None
    return good


def driver_bytes(folder: Path, number: int) -> int:
    """The most that a run's driver holds, beside features, of a set whose store is there."""
    folder.mkdir(parents=True)
    for n in range(number):
        (folder / f"{1 + n // 16}_{n % 6}_{n}.jpg").touch()
    ends = tuple(range(IMAGES_PER_SHARD, number + IMAGES_PER_SHARD, IMAGES_PER_SHARD))
    stores.opened = lambda store: (ImageStore(store, ends, "", ""), [])  # type: ignore[assignment]
    config = load_config(None, ["target.layout=folder", f"target.root={folder}", f"out={folder}"])
    records = load_set(config.target)
    check_names(records)
    passed_over(folder, records)
    read_before, _ = ingest(config, "target")
    table = artefacts.read_table(artefacts.table_bytes(read_before.table)).combine_chunks()
    images = Images(table, read_before.store)
    labels, rows = class_labels(images)
    plan = Plan(0, 1, 1, 32, 32, rows, rows, labels.source_N[rows], images_per_id=4)
    plan.batch(0)
    labels_N1 = np.zeros((number, 1), np.int64)
    artefacts.table_bytes(artefacts.parts_table(table, "pseudo_label", labels_N1))
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def driver_growth(folder: Path) -> int:
    fresh = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with fresh as pool:
        few, many = (pool.submit(driver_bytes, folder / f"{n}", n).result() for n in DRIVERS)
    return many - few


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = call()
    return time.perf_counter() - begun, found


def write_table(folder: Path, names: list[str]) -> None:
    lines = [
        f"images/{name},{pid},{camid}" for name in names for pid, camid, _ in [name.split("_")]
    ]
    (folder / "images.csv").write_text("\n".join(["path,pid,camid", *lines]))


def write_tars(folder: Path, names: list[str]) -> None:
    (folder / "tars").mkdir()
    for at, some in enumerate(np.array_split(names, TARS)):
        with tarfile.open(folder / "tars" / f"{at:03}.tar", "w") as tar:
            for name in some.tolist():
                pid, camid, _ = name.split("_")
                label = json.dumps({"pid": int(pid), "camid": int(camid)}).encode()
                add(tar, f"images/{name}".replace(".jpg", ".json"), label)
                add(tar, f"images/{name}", (folder / "images" / name).read_bytes())


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def copy_to_bucket(folder: Path) -> str:
    """The folder's URI in a bucket of moto's server."""
    uri = f"s3://{BUCKET}/{folder.name}"
    fs.copy_files(str(folder), uri)
    return uri


def measure(folder: Path, number: int, with_bucket: bool) -> Iterator[dict[str, Any]]:
    images = folder / "set" / "images"
    write_images(images, number)
    paths = sorted(images.iterdir())
    names = [path.name for path in paths]
    write_table(images.parent, names)
    write_tars(images.parent, names)
    tars = sorted((images.parent / "tars").iterdir())
    with ProcessPoolExecutor(CORES) as pool:

        def both(loop: Callable[[list[Path]], int], paths: list[Path]) -> float:
            """Seconds of a loop with both cores."""
            return timed(lambda: list(pool.map(loop, [paths[n::CORES] for n in range(CORES)])))[0]

        both(plain_loop, paths[:20])
        loop_seconds, tar_seconds = both(plain_loop, paths), both(plain_tar_loop, tars)

    def ingested(layout: str, root: str, **more: str) -> Images:
        settings = [f"target.layout={layout}", f"target.root={root}", f"out={folder}/run"]
        more_settings = [f"{key}={value}" for key, value in more.items()]
        return ingest(load_config(None, [*settings, *more_settings]), "target")[0]

    ingested("folder", str(images), max_train_images=str(CORES * 10))  # starts Ray's processes
    seconds, wanted = timed(lambda: ingested("folder", str(images)))
    again, _ = timed(lambda: ingested("folder", str(images)))
    store_bytes = sum(path.stat().st_size for path in Path(wanted.store.folder).iterdir())
    image_bytes = sum(path.stat().st_size for path in paths)
    yield row("images read a second", number / seconds, number / loop_seconds)
    yield row("seconds of a second start", again, seconds)
    yield row("bytes that the driver grows by", driver_growth(folder), 150e6)
    yield row("bytes on disk", store_bytes, image_bytes)
    sources = {
        "a table": ("table", f"{images.parent}/images.csv", loop_seconds),
        "tars": ("webdataset", f"{images.parent}/tars", tar_seconds),
    }
    for name, (layout, root, baseline) in sources.items():
        seconds, found = timed(partial(ingested, layout, root))
        yield row(f"images read a second from {name}", number / seconds, number / baseline)
        yield row(f"the same images from {name}", float(is_same(found, wanted)), 1.0)
    if with_bucket:
        few = folder / "few"
        write_images(few, FEW)
        found = ingested("folder", copy_to_bucket(few))
        yield row("the same images from s3", float(is_same(found, ingested("folder", str(few)))), 1)


def is_same(one: Images, other: Images) -> bool:
    same = one.store.content == other.store.content
    return same and bool(one.table["pid"] == other.table["pid"])


def row(name: str, figure: float, baseline: float) -> dict[str, Any]:
    return {"name": name, "figure": figure, "baseline": baseline, "ratio": figure / baseline}


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("--images", type=int, default=20_000)
    options.add_argument("--s3", action="store_true", help="from a server of moto, too")
    given = parse(options)
    with s3_server() if given.s3 else nullcontext():  # before Ray, whose workers need the way there
        ray.init(address="local", num_cpus=CORES, include_dashboard=False,
                 logging_level=logging.ERROR, log_to_driver=False)  # fmt: skip
        silence_ray_data()
        try:
            with scratch_folder() as scratch:
                rows = list(measure(Path(scratch), given.images, given.s3))
        finally:
            ray.shutdown()
    tell(given, f"{given.images:,} images", rows)


if __name__ == "__main__":
    main()
