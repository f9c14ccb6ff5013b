"""Pictures of a run: arrays in, SVG or JPEG bytes out. Nothing is read, kept or shown.

Shapes: N points, H x W pixels, h x w cells of a feature map.

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
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

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
GOLDEN_ANGLE = 0.61803398875  # of the colour circle: neighbours in number are far in hue
NOTHING = "#9a9a9a"  # points of no group: readable on white and on black
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
    "savefig.dpi": 220,  # of the points in a scatter plot
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
            loc="outside upper left", ncols=_columns(names, 6), frameon=False,
            handlelength=2.6, columnspacing=1.2,
        )  # fmt: skip
    return _svg(figure)


@matplotlib.rc_context(STYLE)
def scatter(
    points_N2: NDArray[np.floating], groups_N: NDArray[np.integer], names: Sequence[str] = ()
) -> bytes:
    """Points coloured and shaped by group, as SVG with the points as pixels.

    Group -1 is none, drawn as grey crosses; -2 isn't drawn, but has its room, so that several
    plots of the same points can be laid beside each other. `names[g]` names group g in a legend;
    without names there is none, and any number of groups.
    """
    figure = Figure(figsize=(3.5, 3.3 + 0.2 * (len(names) > 0)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal", adjustable="datalim")
    axes.update_datalim(points_N2)
    for group in np.unique(groups_N[groups_N > -2]):  # -1 first, so that it lies beneath
        inside_M2 = points_N2[groups_N == group]
        axes.scatter(
            inside_M2[:, 0],
            inside_M2[:, 1],
            s=8,
            color=NOTHING if group < 0 else _hue(int(group)),
            marker="x" if group < 0 else MARKERS[int(group) % len(MARKERS)],
            linewidths=0.7 if group < 0 else 0,
            rasterized=True,
            label=names[group] if 0 <= group < len(names) else "",
        )
    if names:
        figure.legend(
            loc="outside lower center", ncols=_columns(names, 3), frameon=False, markerscale=1.8,
            columnspacing=0.7, handletextpad=0.1,
        )  # fmt: skip
    return _svg(figure)


def map_of(features_ND: NDArray[np.floating], seed: int) -> NDArray[np.float64]:
    """t-SNE of features (van der Maaten and Hinton 2008): (N, 2). The same for the same input.

    The Euclidean distances of the features as they are. N of at least 5.
    """
    mapping = TSNE(
        2,
        init="pca",
        perplexity=min(30.0, (len(features_ND) - 1) / 4),
        max_iter=750,
        random_state=seed % 2**32,
    )
    # Its threads wait for each other so often that on a busy machine one of them is faster.
    with threadpool_limits(1):
        points_N2: NDArray[np.float64] = mapping.fit_transform(np.asarray(features_ND, np.float32))
    return points_N2.astype(np.float64)


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


def _columns(names: Sequence[str], beside: int) -> int:
    """How many columns a legend has; `beside` is the room for a line or point, in letters."""
    return max(1, min(len(names), 52 // (max(map(len, names)) + beside)))


def _svg(figure: Figure) -> bytes:
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


def _hue(number: int) -> tuple[float, float, float]:
    """A colour of middling light, readable on white and on black."""
    hue = (0.58 + number * GOLDEN_ANGLE) % 1
    red, green, blue = hsv_to_rgb((hue, 0.75, (0.82, 0.66)[number % 2])).tolist()
    return red, green, blue
