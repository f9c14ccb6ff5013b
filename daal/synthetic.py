"""Drawn pedestrians: two small re-ID domains in Market-1501's layout, made from a seed.

They stand in for real data where none may be shipped: in the demo and in tests. An
identity is what a person wears and carries: colours, pattern, bag, build, hair. Cameras
differ in light, colour response, blur and view, and the two domains in all of that and in
clothes and backgrounds besides (`SOURCE`, `TARGET`). Which cues exist (pattern, bag, build,
upper against lower colour) is the same in both, so that adaptation has something to find.

Every image has its own random generator, keyed by (seed, domain, pid, camid, frame): any
one can be drawn alone, and a file's name says how. The same versions of Pillow and NumPy
give the same bytes.
"""

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from daal.errors import DataError
from daal.records import DISTRACTOR_PID, JUNK_PID

RGB = tuple[int, int, int]
Point = tuple[float, float]
View = Literal["front", "back", "left", "right"]

VIEWS: tuple[View, ...] = ("front", "back", "left", "right")
PATTERNS = ("plain", "plain", "hoops", "pinstripes", "checks", "block", "logo", "sash")
BAGS = ("none", "none", "backpack", "shoulder", "handbag")
SKINS: tuple[RGB, ...] = ((244, 208, 180), (224, 172, 132), (176, 122, 86), (110, 74, 52))
HAIRS: tuple[RGB, ...] = ((28, 24, 24), (66, 44, 30), (120, 82, 44), (196, 164, 98), (150, 150, 150))

DRAWING = 1  # Raise whenever a change here alters any image: old output is then not reused.
MARKER = "synthetic.json"


@dataclass(frozen=True)
class Camera:
    """How one camera sees: in this order blur, contrast, gamma, gain, uneven light, noise."""

    gain: tuple[float, float, float]  # Per channel: colour cast and exposure.
    contrast: float  # About mid-grey; below 1 is haze.
    gamma: float  # Above 1 is darker.
    blur: float  # Gaussian radius in pixels of a 128-pixel-high image.
    noise: float  # Standard deviation in grey levels.
    scale: float  # Size of people in their boxes, 1 = the box is filled.
    views: tuple[float, float, float, float]  # Odds of front, back, left, right.
    wall: RGB
    ground: RGB


@dataclass(frozen=True)
class DomainStyle:
    """What every image of a domain shares: clothes, surroundings and cameras.

    `SOURCE` is summer: saturated light clothes, bare arms and legs, plain walls, cameras that
    agree well. `TARGET` is winter: muted dark clothes, long coats and hats, cluttered streets,
    cameras with strong casts, haze, blur and noise. The gap between them is these fixed values
    and never depends on the seed.
    """

    name: str
    key: int  # This domain's part of every random key.
    uppers: tuple[RGB, ...]
    lowers: tuple[RGB, ...]
    accents: tuple[RGB, ...]  # Of patterns and bags.
    colour_jitter: int  # Identities share palette colours up to this many grey levels.
    bare: float  # Share of people with short sleeves, and with shorts or a skirt.
    coats: float  # Share with a coat down to the knees.
    hats: float
    clutter: int  # Objects in the background of each camera.
    occluders: float  # Share of images in which something stands before the person.
    cameras: tuple[Camera, ...]


SOURCE = DomainStyle(
    name="source",
    key=1,
    uppers=(
        (214, 48, 48), (238, 136, 40), (240, 208, 62), (70, 168, 78), (50, 120, 208),
        (120, 72, 178), (232, 128, 172), (240, 240, 240), (52, 52, 58), (92, 196, 206),
    ),
    lowers=(
        (58, 92, 160), (36, 38, 46), (206, 188, 150), (232, 232, 228), (136, 136, 140),
        (150, 72, 60), (88, 122, 76),
    ),
    accents=(
        (250, 250, 250), (30, 30, 36), (220, 60, 60), (60, 100, 200), (240, 200, 70), (80, 160, 90),
    ),
    colour_jitter=10,
    bare=0.6,
    coats=0.0,
    hats=0.15,
    clutter=6,
    occluders=0.08,
    cameras=(
        Camera((1.12, 1.00, 0.88), 1.00, 0.90, 0.6, 5, 0.92, (4, 2, 1, 1), (206, 200, 188), (168, 164, 158)),
        Camera((0.90, 0.98, 1.12), 0.90, 1.15, 0.8, 6, 0.84, (1, 4, 1, 1), (168, 184, 194), (190, 186, 176)),
        Camera((0.86, 0.90, 0.80), 1.05, 1.30, 0.7, 7, 0.96, (1, 1, 4, 2), (150, 140, 122), (110, 112, 116)),
        Camera((1.06, 1.10, 1.04), 0.75, 0.80, 0.9, 5, 0.88, (1, 1, 2, 4), (202, 206, 200), (204, 196, 180)),
    ),
)  # fmt: skip

TARGET = DomainStyle(
    name="target",
    key=2,
    uppers=(
        (92, 34, 40), (40, 52, 84), (46, 74, 58), (98, 72, 46), (84, 84, 90),
        (34, 34, 38), (78, 56, 88), (126, 112, 84), (44, 86, 96),
    ),
    lowers=(
        (36, 40, 58), (30, 30, 32), (84, 76, 66), (104, 104, 108), (66, 54, 44), (52, 62, 50),
    ),
    accents=(
        (168, 164, 156), (20, 20, 22), (130, 58, 54), (62, 84, 126), (146, 122, 70), (76, 104, 78),
    ),
    colour_jitter=10,
    bare=0.06,
    coats=0.4,
    hats=0.4,
    clutter=45,
    occluders=0.12,
    cameras=(
        Camera((1.18, 1.04, 0.82), 0.92, 0.86, 0.8, 7, 0.86, (4, 2, 1, 1), (132, 118, 100), (96, 92, 88)),
        Camera((0.90, 1.00, 1.14), 0.86, 0.92, 1.0, 8, 0.92, (1, 4, 1, 1), (104, 110, 108), (110, 112, 112)),
        Camera((0.96, 1.10, 0.92), 0.95, 0.78, 0.8, 8, 0.82, (1, 1, 4, 2), (100, 108, 90), (120, 112, 96)),
        Camera((1.10, 1.06, 1.12), 0.80, 0.74, 1.1, 6, 0.88, (1, 1, 2, 4), (132, 126, 128), (84, 84, 92)),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Person:
    """An identity; colours as worn, before any camera sees them."""

    upper: RGB
    lower: RGB
    accent: RGB
    pattern: str
    bag: str
    bag_colour: RGB
    long_sleeves: bool
    legwear: Literal["trousers", "shorts", "skirt"]
    coat: bool
    hat: RGB | None
    hair: RGB
    long_hair: bool
    skin: RGB
    shoes: RGB
    height: float
    width: float


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
    `images_per_camera` images in each; of a test identity's, the first in each camera is a
    query. The gallery also has one distractor (0000) and one junk box (-1) for every five test
    identities. `size` is (height, width). `workers` above 1 draws in that many processes.

    Complete output of the same parameters is left as it is, and an interrupted run is
    drawn again. Anything else in `out` raises DataError.
    """
    if num_train_ids + num_test_ids > 9999 or min(num_train_ids, num_test_ids) < 1:
        raise DataError("Synthetic domains need 1 to 9999 identities, and at least 1 of train and test.")
    if images_per_camera < 2 or min(size) < 16 or seed < 0 or workers < 1:
        raise DataError(
            "Synthetic domains need images_per_camera >= 2 (query and gallery), a height and width "
            ">= 16, seed >= 0 and workers >= 1."
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
        for name, pid, camid, frame in _plan(style, seed, num_train_ids, num_test_ids, images_per_camera):
            jobs.append((out / style.name / name, style, pid, camid, frame, seed, size))
    if workers == 1:
        for job in jobs:
            _write(job)
    else:
        # spawn: forking a process that holds torch's or Ray's threads can hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            for _ in pool.map(_write, jobs, chunksize=64):
                pass
    _mark(out, parameters, complete=True)


def draw_person(
    style: DomainStyle,
    pid: int,
    camid: int,
    frame: int,
    seed: int = 0,
    size: tuple[int, int] = (128, 64),
) -> npt.NDArray[np.uint8]:
    """One image as a camera of `style` sees it: uint8 (height, width, 3), RGB.

    `camid` counts from 1. Junk (pid -1) is a badly cut box; a distractor (pid 0) is somebody
    else in every frame, or nobody.
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
        _figure(canvas, person, view, rng.uniform(-1, 1), rng.uniform(0, 1), centre, top, tall)
    if rng.random() < style.occluders:
        _occlude(canvas, rng)
    return _see(canvas.resize((width, height), Image.Resampling.BOX), camera, rng)


def draw_identity(style: DomainStyle, rng: np.random.Generator) -> Person:
    """A random person dressed in the domain's way."""

    def worn(palette: tuple[RGB, ...]) -> RGB:
        base = palette[rng.integers(len(palette))]
        jitter = rng.integers(-style.colour_jitter, style.colour_jitter + 1, 3)
        red, green, blue = (int(min(255, max(0, c + j))) for c, j in zip(base, jitter, strict=True))
        return red, green, blue

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
        shoes=((36, 32, 32), (220, 220, 220), (96, 64, 44))[rng.integers(3)],
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
        rng = np.random.default_rng([seed, style.key, pid, 0, 0, 0])
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


def _write(job: tuple[Path, DomainStyle, int, int, int, int, tuple[int, int]]) -> None:
    path, style, pid, camid, frame, seed, size = job
    Image.fromarray(draw_person(style, pid, camid, frame, seed, size)).save(path, quality=90)


def _is_complete(out: Path, parameters: dict[str, object]) -> bool:
    """Whether `out` has these parameters' images already; DataError if it has anything else."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; give a new folder for the synthetic domains.")
    if not out.exists() or not any(out.iterdir()):
        return False
    try:
        found = json.loads((out / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{out} isn't empty and wasn't drawn by daal; give a new folder.")
    complete = found.pop("complete", False)
    if found != parameters:
        raise DataError(
            f"{out} holds synthetic domains of other parameters; give a new folder or delete it."
        )
    return bool(complete)


def _mark(out: Path, parameters: dict[str, object], *, complete: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**parameters, "complete": complete}, indent=2)
    (out / MARKER).write_text(text + "\n", encoding="utf-8")


def _shade(colour: RGB, by: float) -> RGB:
    return min(255, int(colour[0] * by)), min(255, int(colour[1] * by)), min(255, int(colour[2] * by))


def _figure(
    canvas: Image.Image,
    person: Person,
    view: View,
    stride: float,
    lean: float,
    centre: float,
    top: float,
    tall: float,
) -> None:
    """Draws a walker onto `canvas`; `stride` in -1..1 is the phase of the walk, `lean` in 0..1.

    Body coordinates: x from the spine, positive to the image's right, y from crown (0) to
    sole (1), both in body heights.
    """
    draw = ImageDraw.Draw(canvas)
    side = view in ("left", "right")
    ahead = -1 if view == "left" else 1
    broad = (0.082 if side else 0.122) * person.width

    def at(x: float, y: float) -> Point:
        return centre + x * tall, top + y * tall

    def limb(points: list[Point], thick: float, colour: RGB) -> None:
        w = thick * tall
        pixels = [at(*p) for p in points]
        draw.line(pixels, fill=colour, width=max(1, round(w)), joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            draw.ellipse((x - w / 2, y - w / 2, x + w / 2, y + w / 2), fill=colour)

    def oval(x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        draw.ellipse((*at(x - rx, y - ry), *at(x + rx, y + ry)), fill=colour)

    def leg(which: int, shade: float) -> None:
        swing = stride * which
        if side:
            hip, knee, foot = 0.0, 0.10 * swing + 0.03 * ahead, 0.19 * swing
            lift = 0.04 * max(0.0, -swing * ahead)
        else:
            hip = which * broad * 0.42
            knee, foot, lift = hip * 1.1, hip * (1.0 + 0.15 * swing), 0.025 * max(0.0, swing)
        joints = [(hip, 0.5), (knee, 0.72 - lift / 2), (foot, 0.95 - lift)]
        thick = 0.082 * person.width
        bare = person.legwear != "trousers"
        limb(joints, thick * (0.72 if bare else 1.0), _shade(person.skin if bare else person.lower, shade))
        if person.legwear == "shorts":
            limb([joints[0], (knee * 0.9 + hip * 0.1, 0.68 - lift / 2)], thick * 1.1, _shade(person.lower, shade))
        toe = 0.05 * ahead if side else 0.01 * which
        limb([(foot, 0.965 - lift), (foot + toe, 0.97 - lift)], 0.045, _shade(person.shoes, shade))

    def arm(which: int, shade: float) -> None:
        swing = -stride * which
        if side:
            shoulder, elbow, hand = 0.0, 0.07 * swing, 0.13 * swing + 0.04 * ahead
        else:
            shoulder = which * broad * 0.92
            elbow, hand = shoulder * 1.22, shoulder * (1.15 + 0.1 * swing)
        joints = [(shoulder, 0.205), (elbow, 0.35), (hand, 0.48 - 0.03 * abs(swing))]
        thick = 0.058 * person.width
        if person.long_sleeves:
            limb(joints, thick, _shade(person.upper, shade))
            oval(*joints[2], 0.024, 0.026, _shade(person.skin, shade))
        else:
            limb(joints, thick * 0.75, _shade(person.skin, shade))
            limb([joints[0], ((shoulder + elbow) / 2, 0.29)], thick, _shade(person.upper, shade))
        if person.bag == "handbag" and which == 1:
            x, y = joints[2]
            draw.line([at(x, y), at(x, y + 0.05)], fill=_shade(person.bag_colour, 0.7), width=3)
            draw.rectangle((*at(x - 0.055, y + 0.04), *at(x + 0.055, y + 0.13)), fill=person.bag_colour)

    def backpack() -> None:
        if side:
            box = sorted((-ahead * (broad + 0.10), -ahead * broad * 0.6))
            draw.rounded_rectangle((*at(box[0], 0.19), *at(box[1], 0.42)), 0.03 * tall, person.bag_colour)
        elif view == "back":
            draw.rounded_rectangle((*at(-0.1, 0.19), *at(0.1, 0.43)), 0.035 * tall, person.bag_colour)
            draw.line([at(-0.08, 0.33), at(0.08, 0.33)], fill=_shade(person.bag_colour, 0.6), width=2)
        else:
            for x in (-0.07, 0.07):
                limb([(x, 0.175), (x, 0.36)], 0.024, person.bag_colour)

    arm(-1, 0.78)
    leg(-1, 0.78)
    leg(1, 1.0)
    if person.bag == "backpack" and side:
        backpack()
    if person.legwear == "skirt":
        flare = broad * 1.15
        hem = [(-broad * 0.85, 0.47), (broad * 0.85, 0.47), (flare, 0.70), (-flare, 0.70)]
        draw.polygon([at(*p) for p in hem], fill=person.lower)
    bottom, spread = (0.74, 1.15) if person.coat else (0.525, 0.9)
    outline = [(-broad * 0.5, 0.155), (broad * 0.5, 0.155), (broad, 0.19), (broad * 0.92, 0.36),
               (broad * spread, bottom), (-broad * spread, bottom), (-broad * 0.92, 0.36), (-broad, 0.19)]  # fmt: skip
    torso = [at(*p) for p in outline]
    draw.polygon(torso, fill=person.upper)
    if person.pattern != "plain":
        _pattern(canvas, person, torso, side or view == "back")
    if person.bag == "backpack" and not side:
        backpack()
    if person.bag == "shoulder":
        over = -1 if view == "back" else 1
        draw.line([at(-0.07 * over, 0.165), at(0.1 * over, 0.47)], fill=person.bag_colour, width=max(2, round(0.022 * tall)))
        oval(0.115 * over, 0.5, 0.06, 0.055, person.bag_colour)
    if side:
        arm(1, 0.92)
    else:
        arm(1, 1.0)
    nod = 0.02 * lean * ahead if side else 0.0
    _head(draw, at, person, view, nod)


def _pattern(canvas: Image.Image, person: Person, torso: list[Point], hides_logo: bool) -> None:
    """Paints the pattern inside the polygon of the upper garment."""
    xs, ys = [p[0] for p in torso], [p[1] for p in torso]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    step = (right - left) / 5 if person.pattern != "hoops" else canvas.height * 0.05
    layer = canvas.copy()
    draw = ImageDraw.Draw(layer)
    thin = max(1, round(step / 3))
    if person.pattern == "hoops":
        y = top
        while y < bottom:
            draw.rectangle((left, y, right, y + step / 2), fill=person.accent)
            y += step
    if person.pattern in ("pinstripes", "checks"):
        x = left + step / 2
        while x < right:
            draw.line([(x, top), (x, bottom)], fill=person.accent, width=thin)
            x += step
    if person.pattern == "checks":
        y = top + step / 2
        while y < bottom:
            draw.line([(left, y), (right, y)], fill=person.accent, width=thin)
            y += step
    if person.pattern == "block":
        draw.rectangle((left, top, right, (2 * top + bottom) / 3), fill=person.accent)
    if person.pattern == "sash":
        draw.line([(left, top), (right, bottom)], fill=person.accent, width=round(step * 1.6))
    if person.pattern == "logo" and not hides_logo:
        x, y = (left + right) / 2, top * 0.68 + bottom * 0.32
        draw.rectangle((x - step, y - step, x + step, y + step), fill=person.accent)
    mask = Image.new("1", canvas.size)
    ImageDraw.Draw(mask).polygon(torso, fill=1)
    canvas.paste(layer, mask=mask)


def _head(
    draw: ImageDraw.ImageDraw,
    at: Callable[[float, float], Point],
    person: Person,
    view: View,
    nod: float,
) -> None:
    def oval(x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        draw.ellipse((*at(x - rx, y - ry), *at(x + rx, y + ry)), fill=colour)

    ahead = -1 if view == "left" else 1
    draw.rectangle((*at(-0.028 + nod, 0.11), *at(0.028 + nod, 0.17)), fill=_shade(person.skin, 0.85))
    oval(nod, 0.068, 0.052, 0.064, person.hair)
    if person.long_hair:
        behind = 0.0 if view in ("front", "back") else -0.02 * ahead
        draw.rectangle((*at(nod + behind - 0.05, 0.06), *at(nod + behind + 0.05, 0.19)), fill=person.hair)
    if view == "front":
        oval(nod, 0.082, 0.04, 0.05, person.skin)
    elif view != "back":
        oval(nod + 0.022 * ahead, 0.082, 0.034, 0.048, person.skin)
    if person.hat is not None:
        draw.pieslice((*at(nod - 0.058, -0.01), *at(nod + 0.058, 0.11)), 180, 360, fill=person.hat)
        draw.rectangle((*at(nod - 0.058, 0.045), *at(nod + 0.058, 0.06)), fill=_shade(person.hat, 0.8))


def _occlude(canvas: Image.Image, rng: np.random.Generator) -> None:
    """Puts a post, a bicycle's bulk or a bollard in front of the person."""
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
    base, tint = rng.integers(low, high), rng.integers(-22, 23, 3)
    red, green, blue = (int(min(255, max(0, base + t))) for t in tint)
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
    camera, rng = style.cameras[camid - 1], _rng(seed, style, -1, camid, -1)
    tall, wide = 2 * height + height // 4, 3 * height
    scene = Image.new("RGB", (wide, tall), camera.wall)
    draw = ImageDraw.Draw(scene)
    horizon = tall * rng.uniform(0.55, 0.75)
    draw.rectangle((0, horizon, wide, tall), fill=camera.ground)
    draw.line([(0, horizon), (wide, horizon)], fill=_shade(camera.ground, 0.7), width=max(2, height // 32))
    for _ in range(style.clutter):
        x, y = rng.uniform(-0.1, 1) * wide, rng.uniform(-0.1, 0.85) * tall
        w, h = rng.uniform(0.02, 0.16) * wide, rng.uniform(0.03, 0.3) * tall
        box, colour = (x, y, x + w, y + h), _grey(rng, 30, 190)
        if rng.random() < 0.3:
            draw.ellipse(box, fill=colour)
        elif rng.random() < 0.5:
            draw.rectangle(box, fill=colour, outline=_shade(colour, 0.5), width=max(1, height // 48))
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
    return np.rint(np.clip(seen * light + noise, 0, 255)).astype(np.uint8)
