"""The images of a run: its own table of them, and the store that all runs share."""

from functools import partial

import pyarrow as pa

from daal.config import Config
from daal.data.places import joined
from daal.data.records import Domain, records_of
from daal.errors import DataError
from pipelines.images import store as stores
from pipelines.images.ingest import Images, ingest, store_of
from pipelines.images.store import ImageStore
from pipelines.run.folder import RunFolder
from pipelines.run.kept_images import image_files, keep_store, kept_store
from pipelines.show.progress import Progress

CONTENT = b"content"  # of the table's metadata: the digest of all images


def read_set(
    config: Config, domain: Domain, run: RunFolder, progress: Progress
) -> tuple[pa.Table, pa.Table]:
    """What a run keeps of a domain's images: IMAGE_TABLE and QUARANTINE_TABLE.

    Raises DataError and StorageError as `ingest` does.
    """
    settings = config.source if domain == "source" else config.target
    images, quarantine = ingest(config, domain, partial(progress.tasks, "ingest"))
    keep_store(run, domain, images.store.folder)
    progress.say(
        f"{domain}: {len(images.table)} images from {settings.root}"
        + (f", {len(quarantine)} unreadable set aside" if len(quarantine) else "")
    )
    return images.table.replace_schema_metadata({CONTENT: images.store.content}), quarantine


def set_of_run(
    table: pa.Table, config: Config, domain: Domain, run: RunFolder, progress: Progress
) -> Images:
    """The images of a table that the run has kept. A store that was deleted is made again.

    Raises:
        DataError: it was deleted, and the set isn't there or has other images now.
    """
    if "image" in table.column_names:  # release 0.1 kept the images in the run folder
        return Images(table.drop_columns(["image"]), _store_of_file(table, config, domain, run))
    store = store_of_run(run, domain, config.store)
    if store is None:
        images, _ = ingest(config, domain, partial(progress.tasks, "ingest"))
        store = images.store
        keep_store(run, domain, store.folder)
    if store.content.encode() != (table.schema.metadata or {}).get(CONTENT):
        raise DataError(
            f"the {domain}'s images that {run.uri} has read were deleted from their store, and its "
            "set has other images now; put the images back, or choose another out=."
        )
    return Images(table, store)


def store_of_run(run: RunFolder, domain: Domain, store: str = "") -> ImageStore | None:
    """The store of a run's images: where the run has left it, or where stores are now, if it was
    moved with the run. None if it isn't there (any more), or the run has its images itself."""
    if (folder := kept_store(run, domain)) is None:
        return None
    key = folder.partition("?")[0].rpartition("/")[2]
    places = folder, joined(stores.stores_folder(store, run.uri), key)
    found = filter(None, map(stores.opened, places))
    return next((store for store, _ in found), None)


def _store_of_file(table: pa.Table, config: Config, domain: Domain, run: RunFolder) -> ImageStore:
    file = image_files(domain)[0]
    records = records_of(table["path"], file=file, offset=pa.array(range(len(table))))
    folder = stores.stores_folder(config.store, run.uri)
    store, bad, _ = store_of([run.base if run.is_local else run.uri], records, folder)
    if bad:
        raise DataError(
            f"{run.uri}/{file} has {len(bad):,} images that can't be read, e.g. {bad[0][1]}; make "
            "the run again."
        )
    return store
