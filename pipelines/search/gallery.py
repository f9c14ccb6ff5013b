"""A gallery to search in: images of a folder, and their features, made here or read from a file.

Shapes: N images, C channels of a feature.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa

from daal.config import ANY_LAYOUT
from daal.data.layouts import FolderLayout, any_images, load_records
from daal.data.places import checked_root, is_inside
from daal.data.records import of_split
from daal.errors import ConfigError, DataError
from pipelines.run.feature_files import read_features
from pipelines.search.extractor import Extractor, Features

SAME_FEATURE = 0.98  # cosine, at least, of a file's feature and the one that is made here
NUM_LOOKED_FOR = 100  # images of a features file, until one is there to be compared


@dataclass(frozen=True)
class Gallery:
    """Images by their paths in `root`; pids and camids where names or the file say them."""

    root: Path
    paths: list[str]
    features_NC: Features
    pids: list[int] | None = None
    camids: list[int] | None = None
    left_out: tuple[tuple[str, str], ...] = ()  # path and reason
    notes: tuple[str, ...] = ()  # on columns of a features file that are left out


def images_to_search(root: str | Path, layout: str, what: str = "The folder") -> pa.Table:
    """RECORDS of every image under a folder, whatever its name (layout "any"); or of a data set's
    gallery, if it has one.

    Raises:
        ConfigError: the layout is unknown.
        DataError: there are no images, or their names and folders aren't those of the layout.
    """
    if layout == ANY_LAYOUT:
        return any_images(root, what)
    for known in get_args(FolderLayout):
        if layout == known:
            records = load_records(known, root)
            gallery = of_split(records, "gallery")
            return gallery if len(gallery) else records
    raise ConfigError(
        f"--layout {layout} is unknown; take one of {', '.join(get_args(FolderLayout))}, or "
        f"{ANY_LAYOUT} for a folder of any images."
    )


def extract_gallery(
    extractor: Extractor,
    root: Path,
    records: pa.Table,
    has_ids: bool,
    done: Callable[[int], None],
) -> Gallery:
    """Features of the records' images under `root`; those that can't be read are left out.

    `done` is told how many were looked at. Raises DataError if none can be read.
    """
    paths = records["path"].to_pylist()
    good, features_NC, reasons = extractor.of_images([root / path for path in paths], done)
    left_out = tuple((paths[place], reason) for place, reason in reasons.items())
    if not good:
        path, reason = left_out[0]
        raise DataError(f"no image in {root} can be read, e.g. {path!a}: {reason}; give others.")
    kept = records.take(pa.array(good))
    return Gallery(
        root,
        kept["path"].to_pylist(),
        features_NC,
        kept["pid"].to_pylist() if has_ids else None,
        kept["camid"].to_pylist() if has_ids else None,
        left_out,
    )


def gallery_of_file(extractor: Extractor, root: Path, file: Path) -> Gallery:
    """Gallery rows of a features file (or, if it has none, all rows), of images under `root`.

    Raises DataError if they aren't this model's features of these images: one is made again.
    """
    root = checked_root(root, "The gallery")
    given = read_features(file)
    if given.splits is not None and (given.splits == "gallery").any():
        given = read_features(file, "gallery")
    if given.features_NC.shape[1] != extractor.num_features:
        raise DataError(
            f"{file} has features of {given.features_NC.shape[1]} channels, and this model's have "
            f"{extractor.num_features}; extract them again with this checkpoint."
        )
    if given.paths is None:
        raise DataError(
            f'{file} does not say which images its features are of (a column "path"); give a file '
            "that daal extract wrote."
        )
    if not np.isfinite(given.features_NC.sum(axis=1, dtype=np.float64)).all():
        raise DataError(f"{file} has features that are not finite; extract them again.")
    gallery = Gallery(
        root,
        [str(path) for path in given.paths.to_pylist()],
        given.features_NC,
        None if given.pids is None else given.pids.tolist(),
        None if given.camids is None else given.camids.tolist(),
        notes=given.left_out,
    )
    _check_same_model(extractor, gallery, file)
    return gallery


def _check_same_model(extractor: Extractor, gallery: Gallery, file: Path) -> None:
    """Features of another model would be compared without any sign that it makes no sense."""
    there = (
        row
        for row, path in enumerate(gallery.paths[:NUM_LOOKED_FOR])
        if is_inside(gallery.root, gallery.root / path) and os.path.isfile(gallery.root / path)
    )
    row = next(there, None)
    if row is None:
        raise DataError(
            f"the images that {file} names (e.g. {gallery.paths[0]!a}) are not in {gallery.root}; "
            "give the folder that they were extracted from."
        )
    feature_C = extractor.of_image(gallery.root / gallery.paths[row], "the gallery image")
    likeness = cosine(feature_C, gallery.features_NC[row])
    if likeness < SAME_FEATURE:
        raise DataError(
            f"{file} was not made by this checkpoint of these images: the feature of "
            f"{gallery.paths[row]!a} is another (cosine {likeness:.2f}); extract them again."
        )


def cosine(a_C: Features, b_C: Features) -> float:
    lengths = float(np.linalg.norm(a_C)) * float(np.linalg.norm(b_C))
    return float(a_C @ b_C) / lengths if lengths else 0.0
