"""Some rows of a run's large tables: images to look at, and features.

Shapes: N rows asked for, D channels of a feature.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from numpy.typing import NDArray

from daal.config import InputConfig
from daal.data.images import decode
from daal.data.records import Domain
from daal.errors import DataError
from pipelines.images.set_of_run import store_of_run
from pipelines.report import figures
from pipelines.run.feature_blocks import FeatureBlocks
from pipelines.run.folder import Entries, RunFolder
from pipelines.run.stages import Stage

Pixels = NDArray[np.uint8]
Columns = dict[str, NDArray[Any]]
Rows = Sequence[int] | NDArray[np.integer]
THUMB = 128  # pixels; the height of an image on the page

# A file of images may be larger than the memory: it is read in a stream.
STREAM = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(
        pre_buffer=False, use_buffered_stream=True
    )
)


@dataclass(frozen=True)
class Photo:
    """An image as the page shows it."""

    src: str  # a data: URI
    alt: str
    caption: str = ""
    kind: str = ""  # right, wrong; or "" without a frame
    title: str = ""  # the file that it is of


def photo(image_HWC: Pixels, alt: str, **more: str) -> Photo:
    data = base64.b64encode(figures.jpeg(image_HWC)).decode()
    return Photo(f"data:image/jpeg;base64,{data}", alt, **more)


def columns(run: RunFolder, names: str | Entries, wanted: Sequence[str]) -> Columns:
    """Small columns of a Parquet file in the run folder, or of several files one after the other:
    all rows. Raises DataError without them."""
    table = _table(run, names).to_table(columns=list(wanted))
    return {column: table[column].to_numpy() for column in wanted}


def images(run: RunFolder, domain: Domain, rows: Rows, height: int, width: int) -> list[Pixels]:
    """Images of a domain's table by row number, (height, width, 3).

    Raises:
        DataError: the images aren't in their store (any more).
    """
    if store := store_of_run(run, domain):
        found = [data.to_pybytes() for data in store.take(np.asarray(rows, np.int64))]
    else:
        table, indices = _table(run, f"images/{domain}.parquet"), np.asarray(rows, np.int64)
        taken = table.take(indices, columns=["image"], batch_size=1024, batch_readahead=1)
        found = [data.as_py() for data in taken["image"]]
    return [decode(data, height, width) for data in found]


def thumbs(run: RunFolder, domain: Domain, rows: Rows, size: InputConfig) -> list[Pixels]:
    """Images to look at, in the proportions that the network sees."""
    return images(run, domain, rows, THUMB, max(16, round(THUMB * size.width / size.height)))


def features(run: RunFolder, model: Stage, rows: Rows) -> NDArray[np.float32]:
    """Features of the target by row number: (N, D). Raises DataError if they aren't there."""
    files = feature_files(run, model)
    blocks = FeatureBlocks(run, files, np.arange(_table(run, files).count_rows()))
    return blocks.of(np.asarray(rows, np.int64)).read()


def feature_files(run: RunFolder, model: Stage) -> Entries:
    """The files with a feature of every target image. Raises DataError if there are none."""
    for part in ("extract-result", "extract"):
        files = run.left(str(model.at(part)))
        are_there = (name.startswith(model.file("features")) and run.exists(name) for name in files)
        if files and all(are_there):
            return files
    raise DataError(
        f"{model.file('features')} is not in the run folder; it was deleted, or isn't made yet."
    )


def spread(rows: NDArray[np.integer], most: int) -> NDArray[np.integer]:
    """At most so many of the rows, evenly over all of them."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def _table(run: RunFolder, names: str | Entries) -> ds.Dataset:
    files = [names] if isinstance(names, str) else list(names)
    for name in files:
        if not run.exists(name):
            raise DataError(f"{name} is not in the run folder; it was deleted, or isn't made yet.")
    return ds.dataset(list(map(run.path, files)), format=STREAM, filesystem=run.filesystem)
