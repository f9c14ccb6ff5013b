"""Drawn pedestrians: two small re-ID domains in Market-1501's layout, made from a seed.

They stand in for real data where none may be shipped: in the demo and in tests. An identity is
what a person wears and carries: colours, pattern, bag, build, hair. Cameras differ in light, colour
response, blur and view, and the two domains in all of that and in clothes and backgrounds besides
(`daal.drawn.domain_style`). Which cues exist (pattern, bag, build, upper against lower colour) is
the same in both, so that adaptation has something to find.

Every image has its own random generator, keyed by (seed, domain, pid, camid, frame): any one can be
drawn alone, and a file's name says how. The same versions of Pillow and NumPy give the same bytes.
"""

import json
import multiprocessing
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from daal.data.records import DISTRACTOR_PID, JUNK_PID
from daal.drawn.domain_style import SOURCE, TARGET, Camera, DomainStyle
from daal.drawn.pedestrian import RGB, VIEWS, Person, dim, draw_figure
from daal.errors import DataError

PATTERNS = ("plain", "plain", "hoops", "pinstripes", "checks", "block", "logo", "sash")
BAGS = ("none", "none", "backpack", "shoulder", "handbag")
SKINS: tuple[RGB, ...] = ((244, 208, 180), (224, 172, 132), (176, 122, 86), (110, 74, 52))
HAIRS: tuple[RGB, ...] = (
    (28, 24, 24), (66, 44, 30), (120, 82, 44), (196, 164, 98), (150, 150, 150),
)  # fmt: skip
SHOES: tuple[RGB, ...] = ((36, 32, 32), (220, 220, 220), (96, 64, 44))

DRAWING = 2  # Raise whenever a change here alters any image: old output is then not reused.
MARKER = "synthetic.json"


def draw_domains(
    out: Path,
    *,
    seed: int = 0,
    num_train_ids: int = 120,
    num_test_ids: int = 60,
    images_per_camera: int = 4,
    size: tuple[int, int] = (128, 64),
    workers: int = 1,
) -> None:
    """Writes `out/source` and `out/target`, each with train, query and gallery folders.

    Each identity is seen by two cameras or more (each camera with odds of 85 %), with
    `images_per_camera` images in each; of a test identity's, the first in each camera is a query.
    The gallery also has one distractor (0000) and one junk box (-1) for every five test identities.
    `size` is (height, width). `workers` above 1 draws in that many processes (a script that asks
    for it needs the `if __name__ == "__main__"` guard).

    Complete output of the same parameters is left as it is, and interrupted output is drawn again.
    Anything else in `out` raises DataError.
    """
    ids = num_train_ids, num_test_ids
    if min(ids) < 1 or sum(ids) > 9999 or images_per_camera < 2 or min(size) < 16 or seed < 0:
        raise DataError(
            "Synthetic domains need at least 1 identity to train and 1 to test, 9999 in all, "
            "images_per_camera >= 2 (query and gallery), a height and width >= 16, and seed >= 0."
        )
    parameters = {
        "drawing": DRAWING,
        "seed": seed,
        "num_train_ids": num_train_ids,
        "num_test_ids": num_test_ids,
        "images_per_camera": images_per_camera,
        "size": list(size),
    }
    if _is_complete(out, parameters):
        return
    _mark(out, parameters, complete=False)
    jobs = []
    for style in (SOURCE, TARGET):
        for split in ("bounding_box_train", "query", "bounding_box_test"):
            (out / style.name / split).mkdir(parents=True, exist_ok=True)
        for name, *key in _plan(style, seed, *ids, images_per_camera):
            jobs.append((out / style.name / name, style, *key, seed, size))
    if workers == 1:
        for job in jobs:
            _write(job)
    else:
        # spawn: forking a process that holds torch's or Ray's threads can hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            list(pool.map(_write, jobs, chunksize=64))
    _mark(out, parameters, complete=True)


def is_drawn(root: str | Path) -> bool:
    """Whether a data set's folder is one of those that `draw_domains` wrote."""
    return any((place / MARKER).exists() for place in (Path(root), Path(root).parent))


def draw_person(
    style: DomainStyle,
    pid: int,
    camid: int,
    frame: int,
    seed: int = 0,
    size: tuple[int, int] = (128, 64),
    with_figure: bool = True,
) -> npt.NDArray[np.uint8]:
    """One image as a camera of `style` sees it: uint8 (height, width, 3), RGB.

    `camid` counts from 1. Junk (pid -1) is a badly cut box; a distractor (pid 0) is another
    person in every frame, or none. `with_figure=False` gives the same image without the person.
    """
    height, width = size
    camera = style.cameras[camid - 1]
    rng = _rng(seed, style, pid, camid, frame)
    if pid > 0:
        person = draw_identity(style, _rng(seed, style, pid))
        passage = _rng(seed, style, pid, camid)  # One walk past one camera keeps its view.
    else:
        person = draw_identity(style, rng)
        passage = rng
    odds = np.array(camera.views) / sum(camera.views)
    view = VIEWS[passage.choice(4, p=odds)]
    if rng.random() < 0.12:
        view = VIEWS[rng.integers(4)]

    canvas = _background(style, camid, seed, height, rng)
    if pid != DISTRACTOR_PID or rng.random() < 0.6:
        tall = canvas.height * camera.scale * person.height * rng.uniform(0.95, 1.05)
        centre = canvas.width * (0.5 + rng.uniform(-0.07, 0.07))
        top = (canvas.height - tall) * rng.uniform(0.3, 0.7)
        if pid == JUNK_PID:
            centre += canvas.width * rng.choice([-0.45, 0.45])
            top += canvas.height * rng.uniform(-0.45, 0.45)
        stride, lean = rng.uniform(-1, 1), rng.uniform(0, 1)
        if with_figure:
            draw_figure(canvas, person, view, stride, lean, centre, top, tall)
    if rng.random() < style.occluders:
        _occlude(canvas, rng)
    return _see(canvas.resize((width, height), Image.Resampling.BOX), camera, rng)


def figure_mask(
    style: DomainStyle,
    pid: int,
    camid: int,
    frame: int,
    seed: int = 0,
    size: tuple[int, int] = (128, 64),
) -> npt.NDArray[np.bool_]:
    """Which pixels of `draw_person` show the person: (height, width).

    They are those that differ from the same drawing without the figure. The camera's blur makes
    the figure a pixel or two wider, and what stands before it is no part of it.
    """
    key = (style, pid, camid, frame, seed, size)
    mask: npt.NDArray[np.bool_] = (draw_person(*key) != draw_person(*key, False)).any(axis=2)
    return mask


def figure_masks(root: Path, paths: Sequence[str]) -> npt.NDArray[np.bool_]:
    """`figure_mask` of files that `draw_domains` wrote into `root`, a domain's folder: (N, H, W).

    Raises:
        DataError: `root` isn't such a folder, or was drawn by another version.
    """
    try:
        drawn = json.loads((root.parent / MARKER).read_text(encoding="utf-8"))
        style = {style.name: style for style in (SOURCE, TARGET)}[root.name]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{root} is not a folder of drawn images, and nothing else has masks of people; give "
            "one that `daal demo` has made."
        ) from error
    if drawn["drawing"] != DRAWING:
        raise DataError(f"{root} was drawn by another version of daal; draw it again.")
    height, width = drawn["size"]
    masks = []
    for path in paths:
        name = re.fullmatch(r"(-?\d+)_c(\d+)s1_(\d+)_01\.jpg", Path(path).name)
        if name is None:
            raise DataError(f"{path} is not the name of a drawn image, so it has no mask.")
        pid, camid, frame = map(int, name.groups())
        masks.append(figure_mask(style, pid, camid, frame, drawn["seed"], (height, width)))
    return np.stack(masks)


def draw_identity(style: DomainStyle, rng: np.random.Generator) -> Person:
    """A random person dressed in the domain's way."""

    def worn(palette: tuple[RGB, ...]) -> RGB:
        base = palette[rng.integers(len(palette))]
        return _clipped(base + rng.integers(-style.colour_jitter, style.colour_jitter + 1, 3))

    upper, lower, accent = worn(style.uppers), worn(style.lowers), worn(style.accents)
    coat = bool(rng.random() < style.coats)
    bare_legs = bool(rng.random() < style.bare) and not coat
    return Person(
        upper=upper,
        lower=lower,
        accent=accent,
        pattern=PATTERNS[rng.integers(len(PATTERNS))],
        bag=BAGS[rng.integers(len(BAGS))],
        bag_colour=worn(style.accents),
        long_sleeves=bool(rng.random() >= style.bare),
        legwear=("shorts" if rng.random() < 0.5 else "skirt") if bare_legs else "trousers",
        coat=coat,
        hat=worn(style.accents) if rng.random() < style.hats else None,
        hair=HAIRS[rng.integers(len(HAIRS))],
        long_hair=bool(rng.random() < 0.4),
        skin=SKINS[rng.integers(len(SKINS))],
        shoes=SHOES[rng.integers(len(SHOES))],
        height=float(rng.uniform(0.88, 1.0)),
        width=float(rng.uniform(0.82, 1.25)),
    )


def _rng(seed: int, style: DomainStyle, *key: int) -> np.random.Generator:
    return np.random.default_rng([seed, style.key, *(k + 1 for k in key)])


def _plan(
    style: DomainStyle, seed: int, num_train_ids: int, num_test_ids: int, images_per_camera: int
) -> Iterator[tuple[str, int, int, int]]:
    """Every image of a domain: name below its root, pid, camid, frame."""
    num_cameras = len(style.cameras)
    for pid in range(1, num_train_ids + num_test_ids + 1):
        rng = _rng(seed, style, pid, 0)  # There is no camera 0: nothing else has this key.
        seen = rng.random(num_cameras) < 0.85
        seen[rng.permutation(num_cameras)[:2]] = True
        for camid in (np.flatnonzero(seen) + 1).tolist():
            for shot in range(images_per_camera):
                split = "bounding_box_train"
                if pid > num_train_ids:
                    split = "query" if shot == 0 else "bounding_box_test"
                frame = 25 * (shot + 1)
                yield f"{split}/{pid:04d}_c{camid}s1_{frame:06d}_01.jpg", pid, camid, frame
    for pid, prefix in ((DISTRACTOR_PID, "0000"), (JUNK_PID, "-1")):
        for shot in range(-(-num_test_ids // 5)):
            camid, frame = shot % num_cameras + 1, 25 * (shot + 1)
            yield f"bounding_box_test/{prefix}_c{camid}s1_{frame:06d}_01.jpg", pid, camid, frame


def _write(job: tuple[Any, ...]) -> None:
    path, *what = job
    Image.fromarray(draw_person(*what)).save(path, quality=90)


def _is_complete(out: Path, parameters: dict[str, object]) -> bool:
    """Whether `out` has these parameters' images already; DataError if it has anything else."""
    if not out.is_dir() or not any(out.iterdir()):
        if out.is_file():
            raise DataError(f"{out} is a file; give a new folder for the synthetic domains.")
        return False
    try:
        found = json.loads((out / MARKER).read_text(encoding="utf-8"))
        complete = bool(found.pop("complete"))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        found = None
    if found != parameters:
        raise DataError(
            f"{out} holds something else than these synthetic domains; give a new folder or "
            "delete it."
        )
    return complete


def _mark(out: Path, parameters: dict[str, object], *, complete: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**parameters, "complete": complete}, indent=2)
    (out / MARKER).write_text(text + "\n", encoding="utf-8")


def _occlude(canvas: Image.Image, rng: np.random.Generator) -> None:
    """Puts a post, a bicycle's bulk or a bollard before the person."""
    draw = ImageDraw.Draw(canvas)
    width, height = canvas.size
    colour = _grey(rng, 40, 150)
    if rng.random() < 0.5:
        x = rng.uniform(0.15, 0.85) * width
        draw.rectangle((x, 0, x + 0.09 * width, height), fill=colour)
    else:
        x, y = rng.uniform(-0.2, 0.6) * width, rng.uniform(0.62, 0.8) * height
        draw.rounded_rectangle((x, y, x + 0.55 * width, height * 1.05), 0.08 * width, fill=colour)


def _grey(rng: np.random.Generator, low: int, high: int) -> RGB:
    return _clipped(rng.integers(low, high) + rng.integers(-22, 23, 3))


def _clipped(levels: npt.NDArray[np.integer]) -> RGB:
    red, green, blue = levels.clip(0, 255).tolist()
    return red, green, blue


def _background(
    style: DomainStyle, camid: int, seed: int, height: int, rng: np.random.Generator
) -> Image.Image:
    """A canvas of twice the image's height, half as wide as high, cut from the camera's scene."""
    scene = _scene(style, camid, seed, height)
    x = int(rng.integers(scene.width - height + 1))
    y = int(rng.integers(scene.height - 2 * height + 1))
    return scene.crop((x, y, x + height, y + 2 * height))


@lru_cache(maxsize=16)
def _scene(style: DomainStyle, camid: int, seed: int, height: int) -> Image.Image:
    """What stands behind people before one camera; shared by all its images."""
    camera, rng = style.cameras[camid - 1], _rng(seed, style, JUNK_PID, camid, 0)
    tall, wide = 2 * height + height // 4, 3 * height
    scene = Image.new("RGB", (wide, tall), camera.wall)
    draw = ImageDraw.Draw(scene)
    horizon = tall * rng.uniform(0.55, 0.75)
    draw.rectangle((0, horizon, wide, tall), fill=camera.ground)
    draw.line(
        [(0, horizon), (wide, horizon)], fill=dim(camera.ground, 0.7), width=max(2, height // 32)
    )
    for _ in range(style.clutter):
        x, y = rng.uniform(-0.1, 1) * wide, rng.uniform(-0.1, 0.85) * tall
        w, h = rng.uniform(0.02, 0.16) * wide, rng.uniform(0.03, 0.3) * tall
        box, colour = (x, y, x + w, y + h), _grey(rng, 30, 190)
        if rng.random() < 0.3:
            draw.ellipse(box, fill=colour)
        elif rng.random() < 0.5:
            draw.rectangle(box, fill=colour, outline=dim(colour, 0.5), width=max(1, height // 48))
        else:
            for offset in range(0, max(1, int(h)), max(4, height // 12)):
                stripe = (x, y + offset, x + w, y + offset + max(2, height // 28))
                draw.rectangle(stripe, fill=colour)
    return scene


@lru_cache(maxsize=64)
def _response(camera: Camera) -> tuple[int, ...]:
    """Contrast, gamma and gain as one table of 3 x 256 entries.

    Computed in Python floats and rounded once: vectorised powers differ between processors.
    """
    table = []
    for gain in camera.gain:
        for level in range(256):
            value = min(1.0, max(0.0, 0.5 + camera.contrast * (level / 255 - 0.5)))
            table.append(min(255, round(255 * gain * value**camera.gamma)))
    return tuple(table)


def _see(image: Image.Image, camera: Camera, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The camera's response to a scene: uint8 (height, width, 3)."""
    image = image.filter(ImageFilter.GaussianBlur(camera.blur * image.height / 128))
    seen = np.asarray(image.point(_response(camera)), dtype=np.float32)
    # Uneven light: a plane over the image, brighter towards a random side, and exposure.
    exposure, across, down = rng.uniform(-1, 1, 3) * (0.08, 0.12, 0.10)
    height, width = seen.shape[:2]
    light = (
        (1 + exposure)
        + across * np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
        + down * np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    )
    noise = rng.standard_normal(seen.shape, dtype=np.float32) * np.float32(camera.noise)
    levels: npt.NDArray[np.float32] = np.clip(seen * light + noise, 0, 255)
    return np.rint(levels).astype(np.uint8)
