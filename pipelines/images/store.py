"""Images of a set in Arrow files, read by row from any node.

A store is a folder named after its key, on a disk or in a bucket, with `shard-00000.arrow`, ...
and, once it is whole, `store.json`. Shards are mapped into memory: a row costs its own bytes. A
node that can't see the folder fetches each shard once, into the user's cache there. All files are
private to their owner.

Lance was measured beside it (`benchmarks.image_stores`): its takes of 64 random rows took 20 to 70
times as long on a disk, its ranges are fetched from a bucket each time, and its files differ each
time that they are written.
"""

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from pyarrow import fs

from daal.data.places import has_login, is_bucket, joined
from daal.errors import ConfigError, DataError, StorageError, first_line

STORES = "daal-images"  # beside the run folders
SUMMARY = "store.json"
OPEN_SHARDS = 512
IMAGE_COLUMN = pa.schema([pa.field("image", pa.large_binary(), nullable=False)])
ABOUT = b"about"  # key of a shard's metadata: what is known of it

Bad = tuple[int, str]  # a row of the listing that was set aside, and why


class Shard(NamedTuple):
    """What is known of a shard. bad: rows of the listing that were set aside."""

    images: int
    size: int  # of the file, in bytes
    digest: str
    bad: list[Bad]

    @classmethod
    def from_json(cls, text: str) -> "Shard":
        images, size, digest, bad = json.loads(text)
        return cls(images, size, digest, [(row, reason) for row, reason in bad])


@dataclass(frozen=True)
class ImageStore:
    """Where the images of a set are. Small to ship."""

    folder: str
    ends: tuple[int, ...]  # images in the shards up to and including each
    content: str  # digest of all images
    node: str  # Ray's id of the node that a folder on a disk is seen from

    def take(self, rows: NDArray[np.int64]) -> list[pa.Buffer]:
        """The bytes of these images, in this order, without a copy.

        Raises DataError if the store isn't there any more.
        """
        shards = np.searchsorted(self.ends, rows, side="right")
        starts = np.array([0, *self.ends])[shards]
        return [
            _shard(self.folder, self.node, shard)[row].as_buffer()
            for shard, row in zip(shards.tolist(), (rows - starts).tolist(), strict=True)
        ]


def stores_folder(store: str, out: str) -> str:
    """Where stores of images are: the setting `store`, or a folder beside the run folder.

    Raises ConfigError if `store` has a login in it, or is needed.
    """
    if has_login(store):
        raise ConfigError(
            "store= has a login in it, which messages and run folders would show; leave it to the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or the machine's role."
        )
    if store:
        return store if is_bucket(store) else os.path.abspath(store)
    if is_bucket(out):
        path, mark, options = out.partition("?")
        return f"{path.rstrip('/').rpartition('/')[0]}/{STORES}{mark}{options}"
    if out.startswith("file:"):
        out = fs.FileSystem.from_uri(out)[1]
    if "://" in out:
        raise ConfigError(f"images aren't kept beside out={out}; give a folder for them as store=.")
    return str(Path(out).absolute().parent / STORES)


def this_node() -> str:
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def opened(folder: str) -> tuple[ImageStore, list[Bad]] | None:
    """The store in a folder and what was set aside; None if there is none, or it isn't whole."""
    try:
        system, base = filesystem_of(folder)
        with system.open_input_file(f"{base}/{SUMMARY}") as file:
            found = json.loads(bytes(file.read()))
        there = {info.base_name: info.size for info in system.get_file_info(fs.FileSelector(base))}
    except (OSError, pa.ArrowException, ValueError):
        return None
    sizes = [there.get(shard_name(number)) for number in range(len(found["ends"]))]
    if None in sizes or sizes != found.get("sizes", sizes):  # of older summaries, not known
        return None
    store = ImageStore(folder, tuple(found["ends"]), found["content"], this_node())
    return store, [(row, reason) for row, reason in found["bad"]]


def finish(folder: str, shards: Sequence[Shard]) -> tuple[ImageStore, list[Bad]]:
    """Write the summary of a store whose shards are all there."""
    ends = np.cumsum([shard.images for shard in shards]).tolist()
    content = hashlib.sha256("".join(shard.digest for shard in shards).encode()).hexdigest()
    bad = [each for shard in shards for each in shard.bad]
    sizes = [shard.size for shard in shards]
    summary = {"format": 1, "ends": ends, "sizes": sizes, "content": content, "bad": bad}
    write_private(folder, SUMMARY, json.dumps(summary).encode())
    return ImageStore(folder, tuple(ends), content, this_node()), bad


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.arrow"


def packed(images: list[bytes], bad: list[Bad]) -> tuple[bytes, Shard]:
    """A shard's file, which says at its end what is known of it."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(len(image).to_bytes(8, "big"))
        digest.update(image)
    about = {"images": len(images), "digest": digest.hexdigest(), "bad": bad}
    schema = IMAGE_COLUMN.with_metadata({ABOUT: json.dumps(about).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.table([pa.array(images, pa.large_binary())], schema))
    data = sink.getvalue().to_pybytes()
    return data, Shard(len(images), len(data), digest.hexdigest(), bad)


def shard_of(file: pa.NativeFile) -> Shard:
    """What a shard's file says of itself; only its end is read.

    Raises pa.ArrowException if the file is cut off, KeyError if it doesn't say.
    """
    about = json.loads(pa.ipc.open_file(file).schema.metadata[ABOUT])
    bad = [(row, reason) for row, reason in about["bad"]]
    return Shard(about["images"], file.size(), about["digest"], bad)


def write_private(folder: str, name: str, data: bytes) -> None:
    """Write a file that is whole or absent, and that only its owner can read.

    Raises:
        StorageError: it can't be written.
    """
    try:
        if is_bucket(folder):
            system, base = filesystem_of(folder)
            with system.open_output_stream(f"{base}/{name}") as stream:
                stream.write(data)
            return
        _make_private(folder)
        aside = f"{folder}/{name}.{uuid.uuid4().hex}.partial"
        try:
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
            os.replace(aside, f"{folder}/{name}")
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"{joined(folder, name)} can't be written: {first_line(error)}; make room, check the "
            "permissions, or give another store=, and the same command continues: shards that are "
            "whole are kept."
        ) from None


def _make_private(folder: str) -> None:
    for each in (os.path.dirname(folder), folder):  # of several new folders, the last has the mode
        os.makedirs(each, mode=0o700, exist_ok=True)


@lru_cache(maxsize=64)
def filesystem_of(folder: str) -> tuple[fs.FileSystem, str]:
    if is_bucket(folder):
        return fs.FileSystem.from_uri(folder)
    return fs.LocalFileSystem(), folder


@lru_cache(maxsize=OPEN_SHARDS)
def _shard(folder: str, node: str, number: int) -> Any:
    path = _on_this_node(folder, node, shard_name(number))
    with pa.memory_map(path) as file:
        return pa.ipc.open_file(file).read_all()["image"].chunk(0)


def _on_this_node(folder: str, node: str, name: str) -> str:
    """A path of the shard on this node; fetched once for all its processes if need be."""
    path = f"{folder}/{name}"
    if not is_bucket(folder):
        if os.path.exists(path):
            return path
        if node in ("", this_node()):
            raise DataError(
                f"{path} is not there any more; start the run again, which reads the images again."
            )
    cache = _cache_folder(folder)
    cached = cache / name
    with open(os.open(cache / ".lock", os.O_RDWR | os.O_CREAT, 0o600)) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not cached.exists():
            write_private(str(cache), name, _fetched(folder, node, name))
    return str(cached)


def _fetched(folder: str, node: str, name: str) -> bytes:
    if not is_bucket(folder):
        selector = {"ray.io/node-id": node}
        fetch = _read_file.options(label_selector=selector, name="fetch-shard")
        return bytes(ray.get(fetch.remote(f"{folder}/{name}")))
    system, base = filesystem_of(folder)
    try:
        with system.open_input_file(f"{base}/{name}") as file:
            return bytes(file.read())
    except OSError as error:
        raise DataError(
            f"{joined(folder, name)} can't be read ({first_line(error)}); check the network and "
            "permissions, or start the run again, which reads the images again."
        ) from None


@ray.remote(num_cpus=0)
def _read_file(path: str) -> bytes:
    return Path(path).read_bytes()


def _cache_folder(folder: str) -> Path:
    """Where this node keeps shards of a store that lies elsewhere."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    place = hashlib.sha256(folder.encode()).hexdigest()[:16]
    cache = Path(caches, STORES, place)
    _make_private(str(cache))
    return cache
