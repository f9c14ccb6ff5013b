"""What a run knows of its images, compared with what is in their sets now.

A run's folder keeps the names and numbers of its images; the images are in a store
(`pipelines.images.store`). A set may be moved or deleted after it was read. Images that are added
or changed later are no part of the run, and the run says so.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from daal.config import Config, DatasetConfig
from daal.data.layouts import records_to_read
from daal.data.places import is_bucket
from daal.data.records import Domain
from daal.data.sources import listing, load_set, roots_of
from daal.errors import DataError
from pipelines.run.folder import RunFolder
from pipelines.run.stages import ingest_stage

KNOWN = ("path", "pid", "camid", "split", "size")


@dataclass(frozen=True)
class KeptImages:
    """What a run knows of a domain's images, but for the images themselves."""

    domain: Domain
    table: pa.Table  # of KNOWN, what the run has
    unreadable: pa.ChunkedArray  # paths of images that were set aside
    read_at: float  # when reading them began, in seconds since the epoch


def image_files(domain: Domain) -> list[str]:
    """Where a run keeps what it knows of a domain's images, and which it could not read."""
    return [f"images/{domain}.parquet", f"images/{domain}-quarantine.parquet"]


def keep_store(run: RunFolder, domain: Domain, folder: str) -> None:
    """Note in which store a domain's images are."""
    run.write(_store_file(domain), json.dumps({"folder": folder}).encode())


def kept_store(run: RunFolder, domain: Domain) -> str | None:
    """What `keep_store` has noted; None of a run of release 0.1, which holds its images itself."""
    with suppress(ValueError, KeyError):
        if run.exists(_store_file(domain)):
            return str(json.loads(run.read(_store_file(domain)))["folder"])
    return None


def _store_file(domain: Domain) -> str:
    return f"images/{domain}-store.json"


def kept_images(run: RunFolder, domain: Domain) -> KeptImages | None:
    """What a run has read of a domain; None if it has to read it yet, or again."""
    stage = str(ingest_stage(domain))
    line = next((line for line in reversed(run.journal()) if line["stage"] == stage), None)
    images, unreadable = image_files(domain)
    if line is None or not (run.exists(images) and run.exists(unreadable)):
        return None
    try:
        table = _read(run, images, KNOWN)
        aside = _read(run, unreadable, ("path",))["path"]
    except (pa.ArrowException, OSError):  # damaged
        return None
    return KeptImages(domain, table, aside, line["started"])


def changes_since(kept: KeptImages, config: Config, moved: bool) -> str:
    """What differs between a run's images and those in the configuration's set now: "8 images
    are new (e.g. ...), ..."; or nothing.

    No image is read. A file counts as changed if its name (or list) says something else of it, if
    it has another size (which release 0.1 did not keep), or if it could not be read and was
    written since.

    Raises:
        DataError: the set isn't what its layout says.
    """
    settings: DatasetConfig = getattr(config, kept.domain)
    listed = records_to_read(load_set(settings), kept.domain, None, config.seed)
    chosen = records_to_read(listed, kept.domain, config.max_train_images, config.seed)
    now = listing(roots_of(settings), listed)
    before = kept.table

    at = pc.index_in(now["path"], before["path"])
    was_read, was_aside = pc.is_valid(at), pc.is_in(now["path"], kept.unreadable)
    is_new = pc.invert(pc.or_(was_read, was_aside))
    is_sample = len(chosen) < len(listed)
    if is_sample:  # which images were there and weren't chosen isn't known
        is_new = pc.and_(is_new, pc.not_equal(now["split"], "train"))
    both, then = now.filter(was_read), before.take(at.drop_null())
    differs = [pc.not_equal(both[name], then[name]) for name in before.column_names[1:]]
    changed = both["path"].filter(_any(differs))
    if not moved:
        since = pc.greater(now["mtime"], int(kept.read_at * 1e9))
        repaired = now["path"].filter(pc.and_(was_aside, since))
        changed = pa.chunked_array([*changed.chunks, *repaired.chunks], pa.string())
    paths = pa.chunked_array([*before["path"].chunks, *kept.unreadable.chunks], pa.string())
    gone = paths.filter(pc.invert(pc.is_in(paths, now["path"])))
    found = [
        f"{len(some):,} image{' is' if len(some) == 1 else 's are'} {what} "
        f"(e.g. {pc.min(some).as_py()!a})"
        for what, some in (
            ("new", now["path"].filter(is_new)), ("gone", gone), ("changed", changed),
        )
        if len(some)
    ]  # fmt: skip
    if is_sample and set(chosen["path"].to_pylist()) != set(paths.to_pylist()):
        found.append("max_train_images would choose others")
    return ", ".join(found)


def notes_on_images(run: RunFolder, config: Config) -> Iterator[str]:
    """A sentence for each domain whose set has other images now than the run has read."""
    for domain, settings in config.domains():
        kept = kept_images(run, domain)
        if kept is None:
            continue
        try:
            changes = changes_since(kept, config, moved=False)
        except DataError as error:
            if not (is_bucket(settings.root) or os.path.exists(settings.root)):
                continue  # the run has what it has read
            changes = str(error).rstrip(".")
        if changes:
            yield (
                f"{domain}: {settings.root} has changed since {run.uri} has read it: {changes}; "
                "the run continues with what it has read, and another out= reads the set again."
            )


def _read(run: RunFolder, name: str, columns: tuple[str, ...]) -> pa.Table:
    with run.filesystem.open_input_file(run.path(name)) as file:
        parquet = pq.ParquetFile(file)
        there = parquet.schema_arrow.names
        return parquet.read(columns=[column for column in columns if column in there])


def _any(masks: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    found = masks[0]
    for mask in masks[1:]:
        found = pc.or_(found, mask)
    return found
