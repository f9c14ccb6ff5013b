"""A data set's folder -> one Arrow table of image bytes, broken images set aside."""

from pathlib import Path

import pyarrow as pa
import ray
import ray.data

from daal.config import Config
from daal.data.images import read
from daal.data.layouts import load_records, records_to_read
from daal.data.records import IMAGE_TABLE, QUARANTINE_TABLE, Domain, ImageRecord
from daal.errors import DataError

IMAGES_PER_TASK = 512


def ingest(config: Config, domain: Domain) -> tuple[pa.Table, pa.Table]:
    """Read and check every image once: (IMAGE_TABLE, QUARANTINE_TABLE), in the records' order.

    Raises:
        DataError: the folder isn't what its layout says, or too many images are unreadable.
    """
    dataset = config.source if domain == "source" else config.target
    records = load_records(dataset.layout, dataset.root)
    records = records_to_read(records, domain, config.max_train_images, config.seed)
    return read_images(dataset.root, domain, records, config.max_bad_share)


def read_images(
    root: str, domain: Domain, records: list[ImageRecord], max_bad_share: float
) -> tuple[pa.Table, pa.Table]:
    """As `ingest`, for these records under `root`."""
    num_tasks = -(-len(records) // IMAGES_PER_TASK)
    dataset = ray.data.range(len(records), override_num_blocks=num_tasks).map_batches(
        _Reader(root, records),
        batch_size=None,
        batch_format="pyarrow",
        # The folder may exist on this node only.
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
    )
    rows = pa.concat_tables(dataset.iter_batches(batch_size=None, batch_format="pyarrow")).sort_by(
        "row"
    )
    good = rows.filter(pa.compute.equal(rows["reason"], ""))
    kept = [records[row] for row in good["row"].to_pylist()]
    table = pa.table(
        {
            "image": good["image"].cast(pa.large_binary()),
            "path": [record.path for record in kept],
            "pid": [record.pid for record in kept],
            "camid": [record.camid for record in kept],
            "split": [record.split for record in kept],
            "domain": [domain] * len(kept),
        },
        schema=IMAGE_TABLE,
    )
    bad = rows.filter(pa.compute.not_equal(rows["reason"], ""))
    paths = [records[row].path for row in bad["row"].to_pylist()]
    quarantine = pa.table(
        {"path": paths, "domain": [domain] * len(paths), "reason": bad["reason"]},
        schema=QUARANTINE_TABLE,
    )
    if len(quarantine) > max_bad_share * len(records):
        raise DataError(
            f"{len(quarantine):,} of {len(records):,} images in {root} can't be read, e.g. "
            f"{paths[0]!a}: {bad['reason'][0]}; repair them or raise max_bad_share."
        )
    return table.combine_chunks(), quarantine


class _Reader:
    def __init__(self, root: str, records: list[ImageRecord]) -> None:
        self.root, self.records = Path(root).absolute(), records

    def __call__(self, batch: pa.Table) -> pa.Table:
        images, reasons = [], []
        for row in batch["id"].to_pylist():
            data, reason = read(self.root / self.records[row].path)
            images.append(data)
            reasons.append(reason or "")
        return pa.table(
            {"row": batch["id"], "image": pa.array(images, pa.large_binary()), "reason": reasons}
        )
