"""Reading image sets into their store: speed, a second start, the same images from anywhere.

    python -m benchmarks.image_sets [--json] [--images 20000] [--s3]

Each row has a figure, its baseline and their ratio. The baseline of reading is a plain loop in two
processes that reads and checks the same files. `--s3` reads the set from a server of moto, too,
with real HTTP.
"""

import io
import json
import logging
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
import psutil
import ray
from PIL import Image
from pyarrow import fs

from benchmarks.s3_server import BUCKET, s3_server
from benchmarks.small_run import scratch_folder
from benchmarks.tables import parse, parser_of, tell
from daal.data.images import read
from daal.load_config import load_config
from pipelines.images.ingest import Images, ingest
from pipelines.workers.session import silence_ray_data

CORES = 2
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


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = call()
    return time.perf_counter() - begun, found


def write_table(folder: Path, names: list[str]) -> None:
    lines = [
        f"images/{name},{pid},{camid}" for name in names for pid, camid, _ in [name.split("_")]
    ]
    (folder / "images.csv").write_text("\n".join(["path,pid,camid", *lines]))


def write_tar(folder: Path, names: list[str]) -> None:
    with tarfile.open(folder / "images.tar", "w") as tar:
        for name in names:
            pid, camid, _ = name.split("_")
            label = json.dumps({"pid": int(pid), "camid": int(camid)}).encode()
            member = tarfile.TarInfo(f"images/{name}".replace(".jpg", ".json"))
            member.size = len(label)
            tar.addfile(member, io.BytesIO(label))
            tar.add(folder / "images" / name, f"images/{name}")


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
    write_tar(images.parent, names)
    parts = [paths[rank::CORES] for rank in range(CORES)]
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(plain_loop, [part[:10] for part in parts]))
        loop_seconds, _ = timed(lambda: list(pool.map(plain_loop, parts)))

    def ingested(layout: str, root: str, **more: str) -> Images:
        settings = [f"target.layout={layout}", f"target.root={root}", f"out={folder}/run"]
        more_settings = [f"{key}={value}" for key, value in more.items()]
        return ingest(load_config(None, [*settings, *more_settings]), "target")[0]

    process = psutil.Process()
    ingested("folder", str(images), max_train_images=str(CORES * 10))  # starts Ray's processes
    before = process.memory_full_info().pss
    seconds, wanted = timed(lambda: ingested("folder", str(images)))
    grown = process.memory_full_info().pss - before
    again, _ = timed(lambda: ingested("folder", str(images)))
    store_bytes = sum(path.stat().st_size for path in Path(wanted.store.folder).iterdir())
    image_bytes = sum(path.stat().st_size for path in paths)
    yield row("images read a second", number / seconds, number / loop_seconds)
    yield row("seconds of a second start", again, seconds)
    yield row("bytes of the driver an image", grown / number, 400)
    yield row("bytes on disk", store_bytes, image_bytes)
    sources = {
        "table": ("table", f"{images.parent}/images.csv"),
        "tar": ("webdataset", f"{images.parent}/images.tar"),
    }
    for name, (layout, root) in sources.items():
        seconds, found = timed(partial(ingested, layout, root))
        yield row(f"images read a second from {name}", number / seconds, number / loop_seconds)
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
