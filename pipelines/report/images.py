"""Some rows of a run's large tables: images to look at, and features.

Shapes: N rows asked for, D channels of a feature.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from daal.config import InputConfig
from daal.data.images import decode
from daal.data.records import Domain
from daal.errors import DataError
from pipelines.images.set_of_run import store_of_run
from pipelines.report import figures
from pipelines.run.artefacts import features_array
from pipelines.run.folder import RunFolder
from pipelines.run.stages import Stage

Pixels = NDArray[np.uint8]
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


def columns(run: RunFolder, name: str, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Small columns of a Parquet file in the run folder, all rows. Raises DataError without it."""
    table = _table(run, name).to_table(columns=list(wanted))
    return {column: table[column].to_numpy() for column in wanted}


def images(run: RunFolder, domain: Domain, rows: Rows, height: int, width: int) -> list[Pixels]:
    """Images of a domain's table by row number, (height, width, 3).

    Raises:
        DataError: the images aren't in their store (any more).
    """
    if store := store_of_run(run, domain):
        found = [data.to_pybytes() for data in store.take(np.asarray(rows, np.int64))]
    else:
        name = f"images/{domain}.parquet"
        found = [data.as_py() for data in _take(run, name, "image", rows)["image"]]
    return [decode(data, height, width) for data in found]


def thumbs(run: RunFolder, domain: Domain, rows: Rows, size: InputConfig) -> list[Pixels]:
    """Images to look at, in the proportions that the network sees."""
    return images(run, domain, rows, THUMB, max(16, round(THUMB * size.width / size.height)))


def features(run: RunFolder, model: Stage, rows: Rows) -> NDArray[np.float32]:
    """Features of the target by row number: (N, D). Raises DataError if the file isn't there."""
    taken = _take(run, model.file("features.parquet"), "feature", rows)
    return features_array(taken).copy()  # PyTorch warns of arrays that can't be written


def spread(rows: NDArray[np.integer], most: int) -> NDArray[np.integer]:
    """At most so many of the rows, evenly over all of them."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def _take(run: RunFolder, name: str, column: str, rows: Rows) -> pa.Table:
    indices = pa.array(np.asarray(rows, np.int64))
    return _table(run, name).take(indices, columns=[column], batch_size=1024, batch_readahead=1)


def _table(run: RunFolder, name: str) -> ds.Dataset:
    if not run.exists(name):
        raise DataError(f"{name} is not in the run folder; it was deleted, or isn't made yet.")
    return ds.dataset(run.path(name), format=STREAM, filesystem=run.filesystem)
