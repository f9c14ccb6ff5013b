"""The images that a run keeps, compared with those in its data sets' folders now.

A run reads its images once (`pipelines.images.ingest`) and keeps them in its folder. So a data set
may be moved or deleted later. Images that are added or changed later are no part of the run, and
the run says so.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from daal.config import Config, DatasetConfig
from daal.data.jpeg_end import END
from daal.data.layouts import load_records, records_to_read
from daal.data.records import Domain, ImageRecord
from daal.errors import DataError
from pipelines.run.folder import RunFolder
from pipelines.run.stages import ingest_stage

NUM_THREADS = 8  # most of them wait for the disk


@dataclass(frozen=True)
class KeptImages:
    """What a run knows of a domain's images, but for the images themselves."""

    run: RunFolder
    domain: Domain
    records: dict[str, ImageRecord]  # by path
    unreadable: set[str]  # paths of images that were set aside
    read_at: float  # when reading them began, in seconds since the epoch

    def sizes(self) -> dict[str, int]:
        """Bytes of each image by path; the whole table is read for it, a part at a time."""
        sizes: dict[str, int] = {}
        for batch in _batches(self.run, image_files(self.domain)[0], "path", "image"):
            lengths = pc.binary_length(batch["image"])
            sizes |= zip(batch["path"].to_pylist(), lengths.to_pylist(), strict=True)
        return sizes


def image_files(domain: Domain) -> list[str]:
    """Where a run keeps a domain's images, and what it could not read of them."""
    return [f"images/{domain}.parquet", f"images/{domain}-quarantine.parquet"]


def kept_images(run: RunFolder, domain: Domain) -> KeptImages | None:
    """What a run has read of a domain; None if it has to read it yet, or again."""
    stage = str(ingest_stage(domain))
    line = next((line for line in reversed(run.journal()) if line["stage"] == stage), None)
    images, unreadable = image_files(domain)
    if line is None or not (run.exists(images) and run.exists(unreadable)):
        return None
    try:
        records = {
            row["path"]: ImageRecord(**row)
            for batch in _batches(run, images, "path", "pid", "camid", "split")
            for row in batch.to_pylist()
        }
        aside = {
            path
            for batch in _batches(run, unreadable, "path")
            for path in batch["path"].to_pylist()
        }
    except (pa.ArrowException, OSError):  # damaged
        return None
    return KeptImages(run, domain, records, aside, line["started"])


def changes_since(kept: KeptImages, config: Config, moved: bool) -> str:
    """What differs between a run's images and those in the configuration's folder now: "8 images
    are new (e.g. ...), ..."; or nothing.

    No image is read. A file counts as changed if its name (or list) says something else of it, or
    if it has another size. Sizes are compared of files that were written since, and of all if
    the folder has `moved`.

    Raises:
        DataError: the folder isn't what its layout says.
    """
    settings: DatasetConfig = getattr(config, kept.domain)
    root, paths = Path(settings.root), kept.records.keys() | kept.unreadable
    listed = records_to_read(load_records(settings.layout, root), kept.domain, None, config.seed)
    chosen = records_to_read(listed, kept.domain, config.max_train_images, config.seed)
    now = {record.path: record for record in listed}
    new = now.keys() - paths
    is_sample = len(chosen) < len(listed)
    if is_sample:  # which images were there and weren't chosen isn't known
        new -= {record.path for record in listed if record.split == "train"}
    both = sorted(paths & now.keys())
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        states = dict(zip(both, pool.map(lambda path: os.stat(root / path), both), strict=True))
    changed = {path for path in both if kept.records.get(path, now[path]) != now[path]}
    if since := {path for path in both if moved or states[path].st_mtime > kept.read_at}:
        sizes = kept.sizes()
        changed |= {path for path in since if not _is_size(sizes.get(path), states[path].st_size)}
        if moved:
            changed -= kept.unreadable  # which have left no size
    found = [
        f"{len(some):,} image{' is' if len(some) == 1 else 's are'} {what} (e.g. {min(some)!a})"
        for what, some in (("new", new), ("gone", paths - now.keys()), ("changed", changed))
        if some
    ]
    if is_sample and {record.path for record in chosen} != paths:
        found.append("max_train_images would choose others")
    return ", ".join(found)


def _is_size(kept: int | None, now: int) -> bool:
    """Whether a file of `now` bytes may be the image of `kept` bytes: a JPEG without the marker at
    its end has been given it (`daal.data.jpeg_end`)."""
    return kept is not None and 0 <= kept - now <= len(END)


def notes_on_images(run: RunFolder, config: Config) -> Iterator[str]:
    """A sentence for each domain whose folder has other images now than the run has read."""
    for domain, settings in config.domains():
        kept = kept_images(run, domain)
        if kept is None or not os.path.isdir(settings.root):
            continue
        try:
            changes = changes_since(kept, config, moved=False)
        except DataError as error:
            changes = str(error).rstrip(".")
        if changes:
            yield (
                f"{domain}: {settings.root} has changed since {run.uri} has read it: {changes}; "
                "the run continues with what it has read, and another out= reads the folder again."
            )


def _batches(run: RunFolder, name: str, *columns: str) -> Iterator[Any]:
    with run.filesystem.open_input_file(run.path(name)) as file:
        yield from pq.ParquetFile(file).iter_batches(1024, columns=list(columns))
