"""A set's listing -> a store of its images, made once by Ray Data; broken images set aside.

The store's key is a digest of the listing: paths, sizes and times of change. So a set that has
changed is read again, and one that hasn't is not. Shards that are whole are kept if the work is
stopped.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from ray.exceptions import RayTaskError
from ray.util import get_node_ip_address

from daal.config import Config
from daal.data.images import UNREAD
from daal.data.layouts import records_to_read
from daal.data.places import is_bucket, joined
from daal.data.records import BOX, IMAGE_TABLE, QUARANTINE_TABLE, Domain
from daal.data.sources import files_of, listing, load_set, read_image, roots_of, wheres
from daal.errors import DataError, StorageError, first_line
from pipelines.images import store as stores
from pipelines.images.get_once import get_once
from pipelines.images.store import Bad, ImageStore, Shard

IMAGES_PER_SHARD, BYTES_PER_SHARD = 1024, 32 * 1024**2
TASKS_PER_CPU, SHARDS_PER_TASK = 2, 8
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
    with own_errors():
        yield from ray.get([call.remote(function, name) for name in names])


@ray.remote(num_cpus=1)
def _call(function: Callable[[str], pa.Table], name: str) -> pa.Table:
    return function(name)


@contextmanager
def own_errors() -> Iterator[None]:
    """What a task raised, without Ray's words."""
    try:
        yield
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

    A store is never changed. Where an image that couldn't be read can be read now, another is made.

    Raises:
        DataError: the set was changed while it was read.
        StorageError: the store can't be written.
    """
    listed = listing(roots, records)
    key = _key(roots, listed)
    while found := stores.opened(joined(folder, key)):
        if not _repaired(roots, listed, found[1]):
            break
        key += "-again"
    folder = joined(folder, key)
    if found is None:
        shards = _make(roots, listed, folder, on_progress)
        _check_unchanged(roots, records, listed, folder)
        found = stores.finish(folder, shards)
    return *found, listed


def _repaired(roots: Sequence[str], listed: pa.Table, bad: list[Bad]) -> bool:
    """Whether an image that was there and couldn't be read, for permissions or a network, can be
    read now. (One that wasn't there has another key when it is.)"""
    rows = [row for row, reason in bad if reason.startswith(UNREAD)]
    unread = listed.take(pa.array(rows, pa.int64()))
    unread = unread.filter(pc.greater_equal(unread["mtime"], 0))
    reasons = (read_image(roots, where)[1] for where in wheres(unread))
    return any(not (reason or "").startswith(UNREAD) for reason in reasons)


def _check_unchanged(
    roots: Sequence[str], records: pa.Table, listed: pa.Table, folder: str
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
) -> list[Shard]:
    """Read all images and write the shards that aren't there yet."""
    bounds = _bounds(listed["size"].to_numpy())
    done = _whole_shards(folder)
    number = len(bounds) - 1
    todo = [shard for shard in range(number) if shard not in done]
    on_progress(number - len(todo), number)
    if todo:
        shared = ray.put(listed), bounds, folder, _nodes_that_see(folder)
        ray.data.DataContext.get_current().raise_original_map_exception = True
        rows = [{"shard": shard} for shard in todo]
        dataset = ray.data.from_items(rows, override_num_blocks=_num_tasks(len(todo))).map(
            partial(_make_shard, list(roots), *shared), **_nodes_that_see(*roots)
        )
        with own_errors():
            for row in dataset.iter_rows():
                done[row["shard"]] = Shard.from_json(row["found"])
                on_progress(len(done), number)
    return [done[shard] for shard in range(number)]


def _num_tasks(num_shards: int) -> int:
    """Ray Data leaves a sixth of a second between two tasks of a CPU, as long as small images of a
    shard take: so tasks make several shards where there are enough for all CPUs."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    at_least = int(TASKS_PER_CPU * resources.get("CPU", 1))
    return max(min(num_shards, at_least), num_shards // SHARDS_PER_TASK)


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
                    found[int(name[6:-6])] = stores.shard_of(file)
            except (pa.ArrowException, KeyError, TypeError, ValueError):  # damaged
                continue
    return found


def _make_shard(
    roots: list[str],
    listed_ref: ray.ObjectRef[Any],
    bounds: list[int],
    folder: str,
    write_on: dict[str, Any],
    row: dict[str, Any],
) -> dict[str, Any]:
    """Read the images of a shard, and write it on a node that sees the folder."""
    number = int(row["shard"])
    first, last = bounds[number], bounds[number + 1]
    listed: pa.Table = get_once(listed_ref)
    places = wheres(listed.slice(first, last - first))
    try:
        if any(map(is_bucket, roots)):
            with ThreadPoolExecutor(REQUESTS) as pool:
                found = list(pool.map(partial(read_image, roots), places))
        else:
            found = [read_image(roots, where) for where in places]
    except DataError as error:  # this node may not do what the driver's may
        raise DataError(f"on node {get_node_ip_address()}: {error}") from error
    images = [data for data, reason in found if reason is None]
    bad = [(at, reason) for at, (_, reason) in enumerate(found, start=first) if reason is not None]
    data, shard = stores.packed(images, bad)
    where = folder, stores.shard_name(number), data
    if write_on in ({}, _nodes_that_see(folder)):  # on the node of this task
        stores.write_private(*where)
    else:
        write = ray.remote(num_cpus=0)(stores.write_private).options(name="write", **write_on)
        with own_errors():
            ray.get(write.remote(*where))
    return {**row, "found": json.dumps(shard)}
