"""Lance and memory-mapped Arrow files as a store of image bytes: the figures behind the choice.

    python -m benchmarks.image_stores [--json] [--s3]

Both hold the same random bytes in the same rows, written by two processes, each shard by one of
them. A take is 64 random rows. Arrow shards that lie in a bucket are fetched whole, once, into a
folder of the node (`first` takes fetch them, `later` ones find them); Lance reads ranges of its
files each time. `--s3` starts a server of moto, with real HTTP. It needs the package `pylance`,
which the project itself doesn't need.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from pyarrow import fs

from benchmarks.s3_server import BUCKET, s3_server
from benchmarks.tables import parse, parser_of, tell

SETS = {"3 kB": (40_000, 3_000), "20 kB": (8_000, 20_000)}  # number of images, mean bytes
SHARD, TAKE, TAKES = 1_000, 64, 200  # images of a shard, rows of a take, takes


def shard_table(seed: int, number: int, mean: int) -> pa.Table:
    """The images of one shard: bytes that don't compress, of half to one and a half the mean."""
    generator = np.random.default_rng([seed, number])
    sizes = generator.integers(mean // 2, mean + mean // 2, SHARD)
    return pa.table({"image": pa.array([generator.bytes(n) for n in sizes], pa.large_binary())})


class Lance:
    name = "lance"

    def __init__(self, uri: str, cache: Path) -> None:
        self.uri = uri
        self.options = s3_options() if uri.startswith("s3:") else None

    def write_shard(self, table: pa.Table, number: int) -> str:
        from lance.fragment import write_fragments

        (fragment,) = write_fragments(table, self.uri, storage_options=self.options)
        return json.dumps(fragment.to_json())

    def finish(self, shards: list[str]) -> None:
        import lance

        fragments = [lance.FragmentMetadata.from_json(shard) for shard in shards]
        schema = pa.schema([("image", pa.large_binary())])
        operation = lance.LanceOperation.Overwrite(schema, fragments)
        lance.LanceDataset.commit(self.uri, operation, storage_options=self.options)

    @lru_cache(maxsize=1)  # noqa: B019
    def dataset(self) -> Any:
        import lance

        return lance.dataset(self.uri, storage_options=self.options)

    def take(self, rows: list[int]) -> int:
        return sum(len(value.as_py()) for value in self.dataset().take(rows, ["image"])["image"])

    def scan(self) -> int:
        return sum(sum(map(len, b["image"].to_pylist())) for b in self.dataset().to_batches())


class ArrowFiles:
    name = "arrow"

    def __init__(self, uri: str, cache: Path) -> None:
        self.uri, self.cache = uri, cache

    def write_shard(self, table: pa.Table, number: int) -> str:
        system, base = located(self.uri)
        system.create_dir(base, recursive=True)
        with (
            system.open_output_stream(f"{base}/{number:05d}.arrow") as stream,
            pa.ipc.new_file(stream, table.schema) as writer,
        ):
            writer.write_table(table)
        return str(number)

    def finish(self, shards: list[str]) -> None:
        self.num_shards = len(shards)

    @lru_cache(maxsize=64)  # noqa: B019  an open shard holds a file descriptor
    def shard(self, number: int) -> pa.ChunkedArray:
        system, base = located(self.uri)
        path = f"{base}/{number:05d}.arrow"
        if not isinstance(system, fs.LocalFileSystem):
            local = self.cache / f"{number:05d}.arrow"
            if not local.exists():
                fs.copy_files(path, str(local.with_suffix(".part")), system, fs.LocalFileSystem())
                local.with_suffix(".part").rename(local)
            path = str(local)
        return pa.ipc.open_file(pa.memory_map(path)).read_all()["image"]

    def take(self, rows: list[int]) -> int:
        places = (divmod(row, SHARD) for row in rows)
        return sum(len(self.shard(shard)[at].as_py()) for shard, at in places)

    def scan(self) -> int:
        return sum(sum(map(len, self.shard(n).to_pylist())) for n in range(self.num_shards))


STORES = (Lance, ArrowFiles)


def located(uri: str) -> tuple[fs.FileSystem, str]:
    return fs.FileSystem.from_uri(uri) if uri.startswith("s3:") else (fs.LocalFileSystem(), uri)


def s3_options() -> dict[str, str]:
    return {"aws_endpoint": os.environ["AWS_ENDPOINT_URL"], "allow_http": "true"}


def write_shards(
    kind: Any, uri: str, cache: Path, numbers: list[int], mean: int
) -> tuple[list[str], float]:
    """What each shard left, and the seconds of writing them."""
    store, seconds, shards = kind(uri, cache), 0.0, []
    for number in numbers:
        table = shard_table(0, number, mean)
        taken, shard = timed(partial(store.write_shard, table, number))
        seconds += taken
        shards.append(shard)
    return shards, seconds


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = call()
    return time.perf_counter() - begun, found


def pss() -> int:
    return psutil.Process().memory_full_info().pss


def read_all(
    kind: Any, uri: str, cache: Path, num_shards: int, connection: Any, remote: bool
) -> None:
    """Takes and a scan, in a process of their own; sends the figures."""
    import_store(kind)
    before = pss()
    store = kind(uri, cache)
    store.num_shards = num_shards
    generator = np.random.default_rng(1)
    takes = [generator.choice(num_shards * SHARD, TAKE, replace=False).tolist() for _ in range(400)]
    figures: dict[str, float] = {}
    figures["first take ms"] = 1000 * timed(lambda: store.take(takes[0]))[0]
    for name, some in (("first", takes[1:40]), ("later", takes[40 : 40 + TAKES])):
        seconds = timed(partial(list, map(store.take, some)))[0]
        figures[f"{name} takes ms"] = 1000 * seconds / len(some)
    figures["PSS after takes MB"] = (pss() - before) / 1e6
    seconds, num_bytes = timed(store.scan)
    figures["scan MB/s"] = num_bytes / 1e6 / seconds
    figures["PSS after scan MB"] = (pss() - before) / 1e6
    connection.send(figures)


def import_store(kind: Any) -> None:
    if kind is Lance:
        import lance  # noqa: F401


def survives_fork(kind: Any, uri: str, cache: Path) -> bool:
    """Whether a forked child of a process that has read can read as well."""
    store = kind(uri, cache)
    store.take([0, 1])
    child = multiprocessing.get_context("fork").Process(target=store.take, args=([2, 3],))
    child.start()
    child.join(20)
    alive, code = child.is_alive(), child.exitcode
    child.kill()
    return not alive and code == 0


def digest(folder: Path) -> str:
    """Of all files under a folder, names included."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()


def measure(kind: Any, root: str, scratch: Path, name: str) -> dict[str, Any]:
    num_images, mean = SETS[name]
    numbers = list(range(num_images // SHARD))
    uri, cache = f"{root}/{kind.name}", scratch / f"cache-{kind.name}"
    cache.mkdir(exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(2) as pool:
        warm = [(kind, f"{root}/warm-{kind.name}-{rank}", cache, [0], 10) for rank in range(2)]
        pool.starmap(write_shards, warm)
        given = [(kind, uri, cache, numbers[rank::2], mean) for rank in range(2)]
        parts = pool.starmap(write_shards, given)
    store = kind(uri, cache)
    shards = [parts[number % 2][0][number // 2] for number in numbers]
    store.finish(shards)
    receiver, sender = spawn.Pipe(duplex=False)
    remote = root.startswith("s3:")
    reader = spawn.Process(target=read_all, args=(kind, uri, cache, len(numbers), sender, remote))
    reader.start()
    figures = receiver.recv() if receiver.poll(600) else {}
    reader.join()
    figures["write MB/s"] = num_images * mean / 1e6 / max(seconds for _, seconds in parts)
    if not remote:
        files = [path for path in Path(uri).rglob("*") if path.is_file()]
        figures["disk / bytes"] = sum(p.stat().st_size for p in files) / (num_images * mean)
        figures["forked child reads"] = survives_fork(kind, uri, cache)
        before = digest(Path(uri))
        shutil.rmtree(uri)
        for number in numbers[:2]:
            write_shards(kind, uri, cache, [number], mean)
        again = digest(Path(uri))
        shutil.rmtree(uri)
        for number in numbers[:2]:
            write_shards(kind, uri, cache, [number], mean)
        figures["same bytes each time"] = again == digest(Path(uri)) and before != again
    return figures


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("--s3", action="store_true", help="against a server of moto, too")
    given = parse(options)
    os.environ["LANCE_LOG"] = "error"
    rows: list[dict[str, Any]] = []
    with (
        s3_server() if given.s3 else nullcontext() as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        for place in ("disk", "s3") if server else ("disk",):
            for name in SETS:
                scratch = Path(folder, place, name.replace(" ", ""))
                scratch.mkdir(parents=True)
                root = str(scratch) if place == "disk" else f"s3://{BUCKET}/{scratch.name}"
                figures = {kind.name: measure(kind, root, scratch, name) for kind in STORES}
                for figure in figures["arrow"]:
                    lance, arrow = (figures[kind].get(figure) for kind in ("lance", "arrow"))
                    row = {"store": place, "images": name, "figure": figure}
                    rows.append(row | {"lance": lance, "arrow": arrow})
    tell(given, "Stores of image bytes", rows)


if __name__ == "__main__":
    main()
