"""A set's listing -> a store of its images, made once by Ray Data; broken images set aside.

The store's key is a digest of the listing: paths, sizes and times of change. So a set that has
changed is read again, and one that hasn't is not. Shards that are whole are kept if the work is
stopped.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from numpy.typing import NDArray
from pyarrow import fs
from ray.util import get_node_ip_address

from daal.config import Config
from daal.data.images import UNREAD
from daal.data.layouts import records_to_read
from daal.data.places import is_bucket, joined
from daal.data.records import IMAGE_TABLE, QUARANTINE_TABLE, Domain, ImageRecord, Where
from daal.data.sources import listing, load_set, read_image, roots_of
from daal.errors import DaalError, DataError, StorageError, first_line
from pipelines.images import store as stores
from pipelines.images.get_once import get_once
from pipelines.images.store import Bad, ImageStore, Shard

IMAGES_PER_SHARD, BYTES_PER_SHARD = 1024, 32 * 1024**2
REQUESTS = 16  # to a bucket at the same time, by a task
FORMAT = "1"  # part of the key: another one reads all sets again

OnProgress = Callable[[int, int], None]  # shards that are done, and all


@dataclass(frozen=True)
class Images:
    """The images of a domain: what is known of each (IMAGE_TABLE), and where they are."""

    table: pa.Table
    store: ImageStore

    def rows(self, split: str) -> NDArray[np.int64]:
        splits = self.table["split"].to_numpy(zero_copy_only=False)
        return np.flatnonzero(splits == split)

    def column(self, name: str) -> NDArray[np.int64]:
        return np.asarray(self.table[name].to_numpy(), np.int64)


def ingest(
    config: Config, domain: Domain, on_progress: OnProgress = lambda done, of: None
) -> tuple[Images, pa.Table]:
    """A domain's images in a store, and those that were set aside (QUARANTINE_TABLE).

    Raises:
        DataError: the set isn't what its layout says, or too many images are unreadable.
        StorageError: the store can't be written.
    """
    settings = config.source if domain == "source" else config.target
    records = records_to_read(load_set(settings), domain, config.max_train_images, config.seed)
    folder = stores.stores_folder(config.store, config.out)
    roots, max_bad_share = roots_of(settings), config.max_bad_share
    return read_images(roots, domain, records, folder, max_bad_share, on_progress)


def read_images(
    roots: Sequence[str],
    domain: Domain,
    records: Sequence[ImageRecord],
    folder: str,
    max_bad_share: float,
    on_progress: OnProgress = lambda done, of: None,
) -> tuple[Images, pa.Table]:
    """As `ingest`, of these records, into a store in `folder`."""
    store, bad, listed = store_of(roots, records, folder, on_progress)
    if len(bad) > max_bad_share * len(records):
        row, reason = bad[0]
        raise DataError(
            f"{len(bad):,} of {len(records):,} images in {roots[records[row].part]} can't be read, "
            f"e.g. {records[row].path!a}: {reason}; repair them or raise max_bad_share."
        )
    is_good = np.ones(len(records), bool)
    is_good[[row for row, _ in bad]] = False
    kept = [record for record, good in zip(records, is_good, strict=True) if good]
    names = ("path", "pid", "camid", "split", "tracklet", "time")
    columns: dict[str, Any] = {name: [getattr(record, name) for record in kept] for name in names}
    columns |= {"domain": [domain] * len(kept), "size": listed["size"].filter(pa.array(is_good))}
    table = pa.table(columns).select(IMAGE_TABLE.names).cast(IMAGE_TABLE)
    quarantine = pa.table(
        {
            "path": [records[row].path for row, _ in bad],
            "domain": [domain] * len(bad),
            "reason": [reason for _, reason in bad],
        },
        schema=QUARANTINE_TABLE,
    )
    return Images(table, store), quarantine


def store_of(
    roots: Sequence[str],
    records: Sequence[ImageRecord],
    folder: str,
    on_progress: OnProgress = lambda done, of: None,
) -> tuple[ImageStore, list[Bad], pa.Table]:
    """The store of these records' images in `folder`, made if it isn't there; the records that
    were set aside; and the listing of all.

    A store is never changed. Where an image that couldn't be read can be read now, another is made.

    Raises:
        DataError: the set was changed while it was read.
        StorageError: the store can't be written.
    """
    listed = listing(roots, records)
    key = _key(roots, listed)
    while found := stores.opened(joined(folder, key)):
        if not _repaired(roots, records, listed, found[1]):
            break
        key += "-again"
    folder = joined(folder, key)
    if found is None:
        shards = _make(roots, listed, folder, on_progress)
        _check_unchanged(roots, records, listed, folder)
        found = stores.finish(folder, shards)
    return *found, listed


def _repaired(
    roots: Sequence[str], records: Sequence[ImageRecord], listed: pa.Table, bad: list[Bad]
) -> bool:
    """Whether an image that was there and couldn't be read, for permissions or a network, can be
    read now. (One that wasn't there has another key when it is.)"""
    there = listed["mtime"]
    return any(
        reason.startswith(UNREAD)
        and there[row].as_py() >= 0
        and not (read_image(roots, records[row])[1] or "").startswith(UNREAD)
        for row, reason in bad
    )


def _check_unchanged(
    roots: Sequence[str], records: Sequence[ImageRecord], listed: pa.Table, folder: str
) -> None:
    """Raise DataError if a file has been written since the listing: which of its contents were read
    isn't known. One that is gone was read before, or set aside."""
    now = listing(roots, records)
    differs = (pc.not_equal(now[name], listed[name]) for name in ("mtime", "size"))
    changed = listed.filter(pc.and_(pc.greater_equal(now["mtime"], 0), pc.or_(*differs)))
    if len(changed):
        system, base = stores.filesystem_of(folder)
        system.delete_dir(base)
        path, root = changed["path"][0].as_py(), roots[changed["part"][0].as_py()]
        raise DataError(
            f"{len(changed):,} of {len(listed):,} images in {root} were changed while they were "
            f"read, e.g. {path!a}; give the same command again when nothing writes there any more."
        )


def _key(roots: Sequence[str], listed: pa.Table) -> str:
    places = [root if is_bucket(root) else os.path.realpath(root) for root in roots]
    digest = hashlib.sha256("\0".join([FORMAT, *places]).encode())
    for column in listed.columns:
        if pa.types.is_string(column.type):
            digest.update("\0".join(column.to_pylist()).encode())
        else:
            digest.update(column.to_numpy().tobytes())
    return digest.hexdigest()[:32]


def _make(
    roots: Sequence[str], listed: pa.Table, folder: str, on_progress: OnProgress
) -> list[Shard]:
    """Read all images and write the shards that aren't there yet."""
    bounds = _bounds(listed["size"].to_numpy())
    done = _whole_shards(folder)
    number = len(bounds) - 1
    todo = [shard for shard in range(number) if shard not in done]
    on_progress(number - len(todo), number)
    if todo:
        read = partial(_read_shard, list(roots), ray.put(listed), bounds)
        # What lies on a disk may be seen from this node only.
        here: dict[str, Any] = {"label_selector": {"ray.io/node-id": stores.this_node()}}
        nowhere: dict[str, Any] = {}
        read_on = nowhere if all(map(is_bucket, roots)) else here
        write_on = nowhere if is_bucket(folder) else here
        dataset = (
            ray.data.from_items([{"shard": shard} for shard in todo], override_num_blocks=len(todo))
            .map(read, **read_on)
            .map(partial(_write_shard, folder), **write_on)
        )
        for row in dataset.iter_rows():
            if row["unopened"]:
                raise DataError(row["unopened"])
            if row["error"]:
                raise StorageError(row["error"])
            bad = [(int(at), str(why)) for at, why in zip(row["rows"], row["reasons"], strict=True)]
            done[row["shard"]] = Shard(row["images"], row["digest"], bad)
            on_progress(len(done), number)
    return [done[shard] for shard in range(number)]


def _bounds(sizes_N: NDArray[np.int64]) -> list[int]:
    """Rows at which shards begin, and the number of rows."""
    bounds, held = [0], 0
    for row, size in enumerate(np.maximum(sizes_N, 0).tolist()):
        if row > bounds[-1] and (
            row - bounds[-1] == IMAGES_PER_SHARD or held + size > BYTES_PER_SHARD
        ):
            bounds.append(row)
            held = 0
        held += size
    return [*bounds, len(sizes_N)]


def _whole_shards(folder: str) -> dict[int, Shard]:
    """What an earlier start has left, by number of shard."""
    try:
        system, base = stores.filesystem_of(folder)
        infos = system.get_file_info(fs.FileSelector(base, allow_not_found=True))
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"{folder} can't be read: {first_line(error).rstrip('.')}; check its name and the "
            "permissions, or give another store=."
        ) from None
    found = {}
    for info in infos:
        name = info.base_name
        if name.startswith("shard-") and name.endswith(".arrow"):
            try:
                with system.open_input_file(info.path) as file:
                    found[int(name[6:-6])] = stores.shard_summary(bytes(file.read()))
            except (pa.ArrowException, KeyError, ValueError):  # damaged
                continue
    return found


def _read_shard(
    roots: list[str], listed_ref: ray.ObjectRef[Any], bounds: list[int], row: dict[str, Any]
) -> dict[str, Any]:
    shard = int(row["shard"])
    first, last = bounds[shard], bounds[shard + 1]
    listed: pa.Table = get_once(listed_ref)
    records = map(_record, listed.slice(first, last - first).to_pylist())
    found: list[tuple[bytes, str | None]] = []
    unopened = ""
    try:
        if any(map(is_bucket, roots)):
            with ThreadPoolExecutor(REQUESTS) as pool:
                found = list(pool.map(partial(read_image, roots), records))
        else:
            found = [read_image(roots, record) for record in records]
    except DataError as error:  # this node may not do what the driver's may
        unopened = f"on node {get_node_ip_address()}: {error}"
    images = [data for data, reason in found if reason is None]
    bad = [(at, reason) for at, (_, reason) in enumerate(found, start=first) if reason is not None]
    return {"shard": shard, "file": stores.shard_bytes(images, bad), "unopened": unopened}


def _record(row: dict[str, Any]) -> ImageRecord:
    """What `read_image` needs of a row of LISTING."""
    box = None if row["w"] < 0 else (row["x"], row["y"], row["w"], row["h"])
    size = row["size"] if row["offset"] >= 0 else -1
    where = Where(row["file"], row["offset"], size, box)
    return ImageRecord(row["path"], 0, 0, "train", where=where, part=row["part"])


def _write_shard(folder: str, row: dict[str, Any]) -> dict[str, Any]:
    shard = stores.shard_summary(row["file"])
    error = ""
    try:
        if not row["unopened"]:
            stores.write_private(folder, stores.shard_name(row["shard"]), row["file"])
    except DaalError as found:
        error = str(found)
    return {
        "shard": row["shard"], "images": shard.images, "digest": shard.digest, "error": error,
        "unopened": row["unopened"],
        "rows": [at for at, _ in shard.bad], "reasons": [reason for _, reason in shard.bad],
    }  # fmt: skip
