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

from daal.config import Config
from daal.data.layouts import records_to_read
from daal.data.places import is_bucket, joined
from daal.data.records import BOX, IMAGE_TABLE, QUARANTINE_TABLE, Domain
from daal.data.sources import files_of, listing, load_set, read_image, roots_of, wheres
from daal.errors import DaalError, DataError, StorageError
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
    records: pa.Table,
    folder: str,
    max_bad_share: float,
    on_progress: OnProgress = lambda done, of: None,
) -> tuple[Images, pa.Table]:
    """As `ingest`, of these RECORDS, into a store in `folder`."""
    store, bad, listed = store_of(roots, records, folder, on_progress)
    bad_rows, reasons = [row for row, _ in bad], [reason for _, reason in bad]
    aside = listed.take(pa.array(bad_rows, pa.int64()))
    if len(bad) > max_bad_share * len(listed):
        raise DataError(
            f"{len(bad):,} of {len(listed):,} images in {roots[aside['part'][0].as_py()]} can't be "
            f"read, e.g. {aside['path'][0].as_py()!a}: {reasons[0]}; repair them or raise "
            "max_bad_share."
        )
    is_good = np.ones(len(listed), bool)
    is_good[bad_rows] = False
    kept = _with_domain(listed.filter(pa.array(is_good)), domain)
    quarantine = _with_domain(aside, domain).append_column("reason", pa.array(reasons, pa.string()))
    return Images(_only(kept, IMAGE_TABLE), store), _only(quarantine, QUARANTINE_TABLE)


def _with_domain(listed: pa.Table, domain: Domain) -> pa.Table:
    return listed.append_column("domain", pa.repeat(domain, len(listed)))


def _only(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return table.select(schema.names).cast(schema)


def store_of(
    roots: Sequence[str],
    records: pa.Table,
    folder: str,
    on_progress: OnProgress = lambda done, of: None,
) -> tuple[ImageStore, list[Bad], pa.Table]:
    """The store of these records' images in `folder`, made if it isn't there; the records that
    were set aside; and the listing of all.

    Raises:
        StorageError: the store can't be written.
    """
    listed = listing(roots, records)
    folder = joined(folder, _key(roots, listed))
    store, bad = stores.opened(folder) or _make(roots, listed, folder, on_progress)
    return store, bad, listed


def _key(roots: Sequence[str], listed: pa.Table) -> str:
    places = [root if is_bucket(root) else os.path.realpath(root) for root in roots]
    digest = hashlib.sha256("\0".join([FORMAT, *places]).encode())
    numbers = [listed[name] for name in ("offset", "size", "mtime")]
    box = [listed[side].fill_null(none) for side, none in zip(BOX, (0, 0, -1, -1), strict=True)]
    for column in (listed["path"], listed["part"], files_of(listed), *numbers, *box):
        if pa.types.is_string(column.type):
            whole = pa.ListArray.from_arrays([0, len(column)], column.combine_chunks())
            digest.update(pc.binary_join(whole, "\0")[0].as_buffer())
        else:
            digest.update(column.to_numpy())
    return digest.hexdigest()[:32]


def _make(
    roots: Sequence[str], listed: pa.Table, folder: str, on_progress: OnProgress
) -> tuple[ImageStore, list[Bad]]:
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
            if row["error"]:
                raise StorageError(row["error"])
            bad = [(int(at), str(why)) for at, why in zip(row["rows"], row["reasons"], strict=True)]
            done[row["shard"]] = Shard(row["images"], row["digest"], bad)
            on_progress(len(done), number)
    return stores.finish(folder, [done[shard] for shard in range(number)])


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
    system, base = stores.filesystem_of(folder)
    found = {}
    for info in system.get_file_info(fs.FileSelector(base, allow_not_found=True)):
        name = info.base_name
        if name.startswith("shard-") and name.endswith(".arrow"):
            try:
                with system.open_input_stream(info.path) as stream:
                    found[int(name[6:-6])] = stores.shard_summary(bytes(stream.read()))
            except (pa.ArrowException, KeyError, ValueError):  # damaged
                continue
    return found


def _read_shard(
    roots: list[str], listed_ref: ray.ObjectRef[Any], bounds: list[int], row: dict[str, Any]
) -> dict[str, Any]:
    shard = int(row["shard"])
    first, last = bounds[shard], bounds[shard + 1]
    listed: pa.Table = get_once(listed_ref)
    places = wheres(listed.slice(first, last - first))
    if any(map(is_bucket, roots)):
        with ThreadPoolExecutor(REQUESTS) as pool:
            found = list(pool.map(partial(read_image, roots), places))
    else:
        found = [read_image(roots, where) for where in places]
    images = [data for data, reason in found if reason is None]
    bad = [(at, reason) for at, (_, reason) in enumerate(found, start=first) if reason is not None]
    return {"shard": shard, "file": stores.shard_bytes(images, bad)}


def _write_shard(folder: str, row: dict[str, Any]) -> dict[str, Any]:
    shard = stores.shard_summary(row["file"])
    error = ""
    try:
        stores.write_private(folder, stores.shard_name(row["shard"]), row["file"])
    except DaalError as found:
        error = str(found)
    return {
        "shard": row["shard"], "images": shard.images, "digest": shard.digest, "error": error,
        "rows": [at for at, _ in shard.bad], "reasons": [reason for _, reason in shard.bad],
    }  # fmt: skip
