"""How a drawn pedestrian looks: what makes an identity, and the walking figure itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]
View = Literal["front", "back", "left", "right"]

VIEWS: tuple[View, ...] = ("front", "back", "left", "right")


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


def dim(colour: RGB, by: float) -> RGB:
    """The colour in light of `by` times the strength."""
    red, green, blue = (min(255, int(level * by)) for level in colour)
    return red, green, blue


def draw_figure(
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

    def box(left: float, top: float, right: float, bottom: float) -> Box:
        return (*at(left, top), *at(right, bottom))

    def limb(points: list[Point], thick: float, colour: RGB) -> None:
        w = thick * tall
        pixels = [at(*p) for p in points]
        draw.line(pixels, fill=colour, width=max(1, round(w)), joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            draw.ellipse((x - w / 2, y - w / 2, x + w / 2, y + w / 2), fill=colour)

    def oval(x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        draw.ellipse(box(x - rx, y - ry, x + rx, y + ry), fill=colour)

    def leg(which: int, light: float) -> None:
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
        colour = dim(person.skin if bare else person.lower, light)
        limb(joints, thick * (0.72 if bare else 1.0), colour)
        if person.legwear == "shorts":
            hem = knee * 0.9 + hip * 0.1, 0.68 - lift / 2
            limb([joints[0], hem], thick * 1.1, dim(person.lower, light))
        toe = 0.05 * ahead if side else 0.01 * which
        limb([(foot, 0.965 - lift), (foot + toe, 0.97 - lift)], 0.045, dim(person.shoes, light))

    def arm(which: int, light: float) -> None:
        swing = -stride * which
        if side:
            shoulder, elbow, hand = 0.0, 0.07 * swing, 0.13 * swing + 0.04 * ahead
        else:
            shoulder = which * broad * 0.92
            elbow, hand = shoulder * 1.22, shoulder * (1.15 + 0.1 * swing)
        joints = [(shoulder, 0.205), (elbow, 0.35), (hand, 0.48 - 0.03 * abs(swing))]
        thick = 0.058 * person.width
        if person.long_sleeves:
            limb(joints, thick, dim(person.upper, light))
            oval(*joints[2], 0.024, 0.026, dim(person.skin, light))
        else:
            limb(joints, thick * 0.75, dim(person.skin, light))
            limb([joints[0], ((shoulder + elbow) / 2, 0.29)], thick, dim(person.upper, light))
        if person.bag == "handbag" and which == 1:
            x, y = joints[2]
            draw.line([at(x, y), at(x, y + 0.05)], fill=dim(person.bag_colour, 0.7), width=3)
            draw.rectangle(box(x - 0.055, y + 0.04, x + 0.055, y + 0.13), fill=person.bag_colour)

    def backpack() -> None:
        colour = person.bag_colour
        if side:
            left, right = sorted((-ahead * (broad + 0.10), -ahead * broad * 0.6))
            draw.rounded_rectangle(box(left, 0.19, right, 0.42), 0.03 * tall, colour)
        elif view == "back":
            draw.rounded_rectangle(box(-0.1, 0.19, 0.1, 0.43), 0.035 * tall, colour)
            draw.line([at(-0.08, 0.33), at(0.08, 0.33)], fill=dim(colour, 0.6), width=2)
        else:
            for x in (-0.07, 0.07):
                limb([(x, 0.175), (x, 0.36)], 0.024, colour)

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
    right = [(broad * 0.5, 0.155), (broad, 0.19), (broad * 0.92, 0.36), (broad * spread, bottom)]
    outline = right + [(-x, y) for x, y in reversed(right)]
    torso = [at(*p) for p in outline]
    draw.polygon(torso, fill=person.upper)
    if person.pattern != "plain":
        _pattern(canvas, person, torso, side or view == "back")
    if person.bag == "backpack" and not side:
        backpack()
    if person.bag == "shoulder":
        over = -1 if view == "back" else 1
        strap = [at(-0.07 * over, 0.165), at(0.1 * over, 0.47)]
        draw.line(strap, fill=person.bag_colour, width=max(2, round(0.022 * tall)))
        oval(0.115 * over, 0.5, 0.06, 0.055, person.bag_colour)
    arm(1, 0.92 if side else 1.0)
    nod = 0.02 * lean * ahead if side else 0.0
    _head(draw, box, oval, person, view, nod)


def _pattern(canvas: Image.Image, person: Person, torso: list[Point], hides_logo: bool) -> None:
    """Paints the pattern inside the polygon of the upper garment."""
    xs, ys = [p[0] for p in torso], [p[1] for p in torso]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    step = (right - left) / 5 if person.pattern != "hoops" else canvas.height * 0.05
    layer = canvas.copy()
    draw = ImageDraw.Draw(layer)
    thin = max(1, round(step / 3))
    if person.pattern == "hoops":
        for y in _every(step, top, bottom):
            draw.rectangle((left, y, right, y + step / 2), fill=person.accent)
    if person.pattern in ("pinstripes", "checks"):
        for x in _every(step, left + step / 2, right):
            draw.line([(x, top), (x, bottom)], fill=person.accent, width=thin)
    if person.pattern == "checks":
        for y in _every(step, top + step / 2, bottom):
            draw.line([(left, y), (right, y)], fill=person.accent, width=thin)
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


def _every(step: float, start: float, end: float) -> list[float]:
    places = []
    while start < end:
        places.append(start)
        start += step
    return places


def _head(
    draw: ImageDraw.ImageDraw,
    box: Callable[[float, float, float, float], Box],
    oval: Callable[[float, float, float, float, RGB], None],
    person: Person,
    view: View,
    nod: float,
) -> None:
    ahead = -1 if view == "left" else 1
    draw.rectangle(box(nod - 0.028, 0.11, nod + 0.028, 0.17), fill=dim(person.skin, 0.85))
    oval(nod, 0.068, 0.052, 0.064, person.hair)
    if person.long_hair:
        middle = nod if view in ("front", "back") else nod - 0.02 * ahead
        draw.rectangle(box(middle - 0.05, 0.06, middle + 0.05, 0.19), fill=person.hair)
    if view == "front":
        oval(nod, 0.082, 0.04, 0.05, person.skin)
    elif view != "back":
        oval(nod + 0.022 * ahead, 0.082, 0.034, 0.048, person.skin)
    if person.hat is not None:
        draw.pieslice(box(nod - 0.058, -0.01, nod + 0.058, 0.11), 180, 360, fill=person.hat)
        draw.rectangle(box(nod - 0.058, 0.045, nod + 0.058, 0.06), fill=dim(person.hat, 0.8))
