"""The two drawn domains: clothes, surroundings and cameras, as fixed values."""

from dataclasses import dataclass

from daal.drawn.pedestrian import RGB


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

    `SOURCE` is summer: saturated light clothes, bare arms and legs, little behind people, and
    cameras that are bright on the whole though each has its own cast. `TARGET` is winter: muted
    dark clothes, long coats and hats, cluttered streets, and cameras under sodium light: a warm
    cast, haze, lifted shadows, more blur and noise, much the same in all of them.
    Pattern, bag, build, hair and poses are drawn alike in both. The gap is these fixed values
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
    clutter=10,
    occluders=0.10,
    cameras=(
        Camera(
            (1.14, 1.00, 0.86), 0.95, 0.85, 0.7, 6, 0.92, (4, 2, 1, 1),
            (206, 200, 188), (168, 164, 158),
        ),
        Camera(
            (0.88, 0.98, 1.14), 0.88, 1.15, 0.9, 7, 0.84, (1, 4, 1, 1),
            (148, 164, 174), (180, 176, 166),
        ),
        Camera(
            (0.86, 0.92, 0.80), 1.05, 1.35, 0.8, 8, 0.96, (1, 1, 4, 2),
            (150, 140, 122), (110, 112, 116),
        ),
        Camera(
            (1.06, 1.10, 1.04), 0.72, 0.78, 1.0, 6, 0.88, (1, 1, 2, 4),
            (202, 206, 200), (204, 196, 180),
        ),
    ),
)  # fmt: skip

TARGET = DomainStyle(
    name="target",
    key=2,
    uppers=(
        (128, 36, 46), (38, 58, 118), (40, 98, 60), (158, 112, 66), (112, 112, 118),
        (34, 34, 38), (104, 58, 124), (134, 124, 58), (36, 112, 122), (168, 84, 40),
    ),
    lowers=(
        (36, 44, 84), (30, 30, 32), (112, 96, 76), (120, 120, 124), (92, 58, 40), (58, 76, 50),
    ),
    accents=(
        (196, 190, 176), (20, 20, 22), (158, 58, 54), (58, 92, 156), (176, 142, 66), (76, 124, 80),
    ),
    colour_jitter=10,
    bare=0.06,
    coats=0.4,
    hats=0.4,
    clutter=30,
    occluders=0.10,
    cameras=(
        Camera(
            (1.10, 0.98, 0.74), 0.66, 0.80, 1.2, 9, 0.86, (3, 2, 2, 1),
            (132, 120, 104), (104, 98, 92),
        ),
        Camera(
            (1.04, 1.00, 0.80), 0.62, 0.84, 1.3, 9, 0.90, (2, 3, 1, 2),
            (118, 116, 108), (110, 106, 100),
        ),
        Camera(
            (1.12, 1.02, 0.78), 0.70, 0.76, 1.2, 10, 0.84, (1, 2, 3, 2),
            (112, 108, 96), (120, 112, 96),
        ),
        Camera(
            (1.06, 0.96, 0.72), 0.64, 0.80, 1.4, 8, 0.88, (2, 1, 2, 3),
            (126, 118, 112), (98, 92, 90),
        ),
    ),
)  # fmt: skip
