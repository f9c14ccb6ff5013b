"""Pictures of a run: arrays in, SVG or JPEG bytes out. Nothing is read, kept or shown.

Shapes: H x W pixels, h x w cells of a feature map.

Plots have no background and take their colours from the page that they stand in, by the CSS
variables of `COLOURS`; by themselves they are drawn for white paper. Series differ by dashes and
markers too, for readers who can't tell the colours apart and for black and white print.
"""

import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image

# What matplotlib is told -> the page's variable, and the colour where there is no page.
COLOURS = {
    "#010101": ("ink", "#333333"),
    "#010102": ("rule", "#cccccc"),
    "#010110": ("series-1", "#0b62a8"),
    "#010111": ("series-2", "#c04e00"),
    "#010112": ("series-3", "#00785a"),
    "#010113": ("series-4", "#a2458c"),
    "#010114": ("series-5", "#5b5b5b"),
}
INK, RULE, *SERIES = COLOURS
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 2)))
MARKERS = ("o", "s", "^", "D", "v")
MANY_POINTS = 40  # beyond them a line has no markers
JPEG_QUALITY = 85

# matplotlib's settings for one figure; no state of pyplot is touched.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters: they are found, read out and small
    "svg.hashsalt": "daal",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # a "$" in a name is a "$"
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "xtick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Curve:
    """One line of a plot: x and y are N numbers each; a y that is NaN leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@matplotlib.rc_context(STYLE)
def curves(
    lines: Sequence[Curve],
    x_label: str,
    y_label: str,
    *,
    whole_x: bool = False,
    log_y: bool = False,
    borders: Iterable[float] = (),
) -> bytes:
    """Lines over a common x, as SVG. `whole_x`: only whole numbers at the axis; `borders`: places
    on it where something new begins."""
    figure = Figure(figsize=(3.5, 2.3), layout="constrained")
    axes = figure.add_subplot()
    for border in borders:
        axes.axvline(border, color=RULE, linewidth=0.8)
    for number, line in enumerate(lines):
        axes.plot(
            np.asarray(line.x, float),
            np.asarray(line.y, float),
            color=SERIES[number % len(SERIES)],
            linestyle=DASHES[number % len(DASHES)],
            marker=MARKERS[number % len(MARKERS)] if len(line.x) <= MANY_POINTS else "",
            markersize=3.6,
            linewidth=1.6,
            label=line.name,
        )
    if all(float(y).is_integer() for line in lines for y in line.y):
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, which="both")
    if len(lines) > 1:
        names = [line.name for line in lines]
        figure.legend(
            axes.lines[-len(lines) :], names,
            loc="outside upper left", ncols=legend_columns(names, 6), frameon=False,
            handlelength=2.6, columnspacing=1.2,
        )  # fmt: skip
    return svg_of(figure)


def weighted(image_HWC: NDArray[np.uint8], weights_hw: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The image as bright as the weights, which are resized to it; (H, W, 3) like the image.

    The lowest weight of the map is an eighth of the light, the highest all of it: a map that
    differs little from place to place shows its differences as clearly as another, so that its
    range has to stand beside the picture. Of one value everywhere, it leaves the image.
    """
    low, high = float(weights_hw.min()), float(weights_hw.max())
    if high - low < 1e-6:
        return image_HWC
    scaled_hw = ((weights_hw - low) / (high - low)).astype(np.float32)
    height, width = image_HWC.shape[:2]
    resized = Image.fromarray(scaled_hw).resize((width, height), Image.Resampling.BILINEAR)
    light_HW = 0.125 + 0.875 * np.asarray(resized)
    return np.asarray(np.rint(image_HWC * light_HW[..., None]), dtype=np.uint8)


def jpeg(image_HWC: NDArray[np.uint8]) -> bytes:
    """A photograph for a page: small rather than exact."""
    data = io.BytesIO()
    Image.fromarray(image_HWC).save(data, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return data.getvalue()


def legend_columns(names: Sequence[str], beside: int) -> int:
    """How many columns a legend has; `beside` is the room for a line or point, in letters."""
    return max(1, min(len(names), 52 // (max(map(len, names)) + beside)))


def svg_of(figure: Figure) -> bytes:
    data = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # Letters that matplotlib's own font lacks are drawn by the page's.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(data, format="svg", transparent=True, metadata=nothing)
    text = data.getvalue().decode()
    for told, (variable, paper) in COLOURS.items():
        text = text.replace(told, f"var(--{variable}, {paper})")
    return text.encode()
