"""A set's listing -> a store of its images, made once by Ray tasks; broken images set aside.

The store's key is a digest of the listing: paths, sizes and times of change. So a set that has
changed is read again, and one that hasn't is not. Shards that are whole are kept if the work is
stopped.

A task makes a shard. Ray Data was measured: between two tasks of a core it left a sixth of a second
on a busy machine, nearly as long as a thousand small images take.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from pyarrow import fs
from ray.exceptions import RayTaskError

from daal.config import Config
from daal.data.layouts import records_to_read
from daal.data.places import is_bucket, joined
from daal.data.records import BOX, IMAGE_TABLE, QUARANTINE_TABLE, Domain
from daal.data.sources import files_of, listing, load_set, read_image, roots_of, wheres
from daal.errors import DataError
from pipelines.images import store as stores
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
        return np.flatnonzero(pc.equal(self.table["split"], split).to_numpy())

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
    roots = roots_of(settings)
    records = load_set(settings, partial(_in_tasks, _nodes_that_see(*roots)))
    records = records_to_read(records, domain, config.max_train_images, config.seed)
    folder = stores.stores_folder(config.store, config.out)
    return read_images(roots, domain, records, folder, config.max_bad_share, on_progress)


def _nodes_that_see(*places: str) -> dict[str, Any]:
    """Options of tasks that read or write there: a disk may be seen from this node only."""
    if all(map(is_bucket, places)):
        return {}
    return {"label_selector": {"ray.io/node-id": stores.this_node()}}


def _in_tasks(
    options: dict[str, Any], function: Callable[[str], pa.Table], names: list[str]
) -> Iterator[pa.Table]:
    """As `map`, each call in a task."""
    call = _call.options(name="list", **options)
    return map(_result, [call.remote(function, name) for name in names])


@ray.remote(num_cpus=1)
def _call(function: Callable[[str], pa.Table], name: str) -> pa.Table:
    return function(name)


def _result(task: ray.ObjectRef[Any]) -> Any:
    """Of a task; or its own error, without Ray's words."""
    try:
        return ray.get(task)
    except RayTaskError as error:
        raise error.cause from None


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
    make = _make_shard.options(name="ingest", **_nodes_that_see(*roots))
    to_read, write_on = ray.put(listed), _nodes_that_see(folder)
    tasks = {
        make.remote(roots, to_read, bounds[shard : shard + 2], folder, write_on, shard): shard
        for shard in todo
    }
    pending = list(tasks)
    try:
        while pending:
            (task,), pending = ray.wait(pending)
            done[tasks[task]] = _result(task)
            on_progress(len(done), number)
    finally:
        for task in pending:
            ray.cancel(task)
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
                with system.open_input_file(info.path) as file:
                    found[int(name[6:-6])] = stores.shard_of(file)
            except (pa.ArrowException, KeyError, TypeError, ValueError):  # damaged
                continue
    return found


@ray.remote(num_cpus=1)
def _make_shard(
    roots: Sequence[str],
    listed: pa.Table,
    bounds: Sequence[int],
    folder: str,
    write_on: dict[str, Any],
    number: int,
) -> Shard:
    """Read the images of the listing's rows from the first to the second bound, and write their
    shard, on a node that sees the folder."""
    first, last = bounds
    places = wheres(listed.slice(first, last - first))
    if any(map(is_bucket, roots)):
        with ThreadPoolExecutor(REQUESTS) as pool:
            found = list(pool.map(partial(read_image, roots), places))
    else:
        found = [read_image(roots, where) for where in places]
    images = [data for data, reason in found if reason is None]
    bad = [(at, reason) for at, (_, reason) in enumerate(found, start=first) if reason is not None]
    data, shard = stores.packed(images, bad)
    where = folder, stores.shard_name(number), data
    if write_on in ({}, _nodes_that_see(folder)):
        stores.write_private(*where)
    else:
        write = ray.remote(num_cpus=0)(stores.write_private).options(name="write", **write_on)
        _result(write.remote(*where))
    return shard
