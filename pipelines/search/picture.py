"""What a search has found, as a picture: the query, then its matches from left to right."""

import io
import os
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from daal.config import InputConfig
from daal.data.images import decode, read
from daal.data.places import is_inside
from daal.errors import ConfigError
from pipelines.search.nearest import Match

FORMATS = (".png", ".jpg", ".svg", ".pdf")
PER_ROW = 10  # matches
MAX_NAME = 30  # characters of a file's name


def check_picture(out: Path) -> None:
    """Before the work. Raises ConfigError for a format that can't be drawn."""
    if out.suffix.lower() not in FORMATS:
        raise ConfigError(f"--out {out}: a picture's name must end in one of {', '.join(FORMATS)}.")


def draw(query: Path, root: Path, matches: list[Match], size: InputConfig, format: str) -> bytes:
    """Images as the network sees them; names and figures below. What can't be read stays grey."""
    num_rows = max(1, -(-len(matches) // PER_ROW))
    num_columns = 1 + min(len(matches), PER_ROW)
    width = 1.25
    height = width * size.height / size.width + 0.6
    figure = Figure(figsize=(width * num_columns, height * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for each in axes.flat:
        each.set_axis_off()
    _show(axes[0, 0], _pixels(query, size), "query", query.name)
    for place, match in enumerate(matches):
        row, column = divmod(place, PER_ROW)
        title = f"{place + 1}: {match.distance:.3f}"
        if match.pid is not None:
            title += f"\npid {match.pid}"
        path = root / match.path
        pixels = _pixels(path, size) if is_inside(root, path) else None
        _show(axes[row, column + 1], pixels, title, match.path.rpartition("/")[2])
    data = io.BytesIO()
    figure.savefig(data, format=format.removeprefix("."), dpi=120)
    return data.getvalue()


def _show(axes: Axes, pixels: NDArray[np.uint8] | None, title: str, name: str) -> None:
    if pixels is None:
        pixels = np.full((2, 1, 3), 200, np.uint8)
    axes.imshow(pixels, interpolation="nearest")
    axes.set_title(title, fontsize=8)
    # Letters that fonts may lack are written by number, and a "$" isn't mathematics.
    plain = ascii(name)[1:-1]
    plain = plain if len(plain) <= MAX_NAME else f"...{plain[3 - MAX_NAME :]}"
    axes.text(
        0.5, -0.02, plain, transform=axes.transAxes, ha="center", va="top", fontsize=5,
        parse_math=False,
    )  # fmt: skip


def _pixels(path: Path, size: InputConfig) -> NDArray[np.uint8] | None:
    data, reason = read(path) if os.path.isfile(path) else (b"", "there is no such file")
    return None if reason else decode(data, size.height, size.width)
