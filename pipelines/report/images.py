"""Some rows of a run's large tables: images to look at, and features.

Shapes: N rows asked for, D channels of a feature. The tables are streamed, so that a few images of
a million take little memory.
"""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from daal import figures
from daal.config import InputConfig
from daal.data.images import decode
from daal.data.records import Domain
from daal.errors import DataError
from pipelines.images.set_of_run import store_of_run
from pipelines.run.folder import RunFolder
from pipelines.run.stages import Stage

Pixels = NDArray[np.uint8]
BATCH = 1024  # rows in memory
THUMB = 128  # pixels; the height of an image on the page


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
    """Small columns of a Parquet file in the run folder, all rows.

    Raises:
        DataError: the file isn't there.
    """
    with _opened(run, name) as file:
        table = pq.ParquetFile(file).read(columns=list(wanted))
    return {column: table[column].to_numpy() for column in wanted}


def images(
    run: RunFolder, domain: Domain, rows: Sequence[int], height: int, width: int
) -> list[Pixels]:
    """Images of a domain's table by row number, (height, width, 3), in the order asked for.

    Raises:
        DataError: the images aren't in their store (any more).
    """
    wanted = np.asarray(rows, np.int64)
    if store := store_of_run(run, domain):
        return [decode(data.to_pybytes(), height, width) for data in store.take(wanted)]
    name = f"images/{domain}.parquet"
    with _opened(run, name) as file:
        if "image" not in pq.ParquetFile(file).schema_arrow.names:
            raise DataError(f"the store of the {domain}'s images was deleted.")
    found = {
        row: decode(value.as_py(), height, width)
        for inside, values in _batches(run, name, "image", np.unique(wanted))
        for row, value in zip(inside.tolist(), values, strict=True)
    }
    return [found[row] for row in rows]


def thumbs(run: RunFolder, domain: Domain, rows: Sequence[int], size: InputConfig) -> list[Pixels]:
    """Images to look at, in the proportions that the network sees."""
    return images(run, domain, rows, THUMB, max(16, round(THUMB * size.width / size.height)))


def features(run: RunFolder, model: Stage, rows: NDArray[np.integer]) -> NDArray[np.float32]:
    """Features by row number: float32 (N, D). `rows` ascending.

    Raises:
        DataError: the file isn't there.
    """
    name = model.file("features.parquet")
    found: NDArray[np.float32] | None = None
    at = 0
    for inside, column in _batches(run, name, "feature", rows):
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(inside), -1)
        if found is None:
            found = np.empty((len(rows), values.shape[1]), np.float32)
        found[at : at + len(inside)] = values
        at += len(inside)
    if found is None or at < len(rows):
        raise DataError(f"{name} has fewer rows than there are images.")
    return found


def spread(rows: NDArray[np.integer], most: int) -> NDArray[np.integer]:
    """At most so many of the rows, evenly over all of them."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def _batches(
    run: RunFolder, name: str, column: str, rows: NDArray[np.integer]
) -> Iterator[tuple[NDArray[np.integer], Any]]:
    """Some of the rows (ascending) at a time, and their values; no more is read than they need."""
    first = 0
    with _opened(run, name) as file:
        for batch in pq.ParquetFile(file).iter_batches(BATCH, columns=[column]):
            last = first + batch.num_rows
            inside = rows[(rows >= first) & (rows < last)]
            if len(inside):
                yield inside, batch.column(0).take(pa.array(inside - first))
            first = last
            if len(rows) == 0 or rows[-1] < last:
                return


def _opened(run: RunFolder, name: str) -> Any:
    if not run.exists(name):
        raise DataError(f"{name} is not in the run folder; it was deleted, or isn't made yet.")
    return run.filesystem.open_input_file(run.path(name))
