"""The two drawn domains: clothes, surroundings and cameras, as fixed values of styles.toml.

Pattern, bag, build, hair and poses are drawn alike in both, and the values never depend on the
seed. Another style is another table of that file.
"""

import tomllib
from importlib.resources import files

from pydantic import BaseModel

from daal.drawn.pedestrian import RGB


class Camera(BaseModel, frozen=True, extra="forbid"):
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


class DomainStyle(BaseModel, frozen=True, extra="forbid"):
    """What every image of a domain shares."""

    name: str
    key: int  # This domain's part of every random key.
    uppers: tuple[RGB, ...]
    lowers: tuple[RGB, ...]
    accents: tuple[RGB, ...]  # Of patterns and bags.
    colour_jitter: int  # Identities share palette colours up to this many grey levels.
    bare: float  # Share of people with short sleeves, and with shorts or a skirt.
    coats: float  # Share with a coat down to the knees.
    hats: float  # Share with a hat.
    clutter: int  # Objects in the background of each camera.
    occluders: float  # Share of images in which something stands before the person.
    cameras: tuple[Camera, ...]


_STYLES = tomllib.loads(files("daal.drawn").joinpath("styles.toml").read_text(encoding="utf-8"))
SOURCE, TARGET = (DomainStyle(name=name, **_STYLES[name]) for name in ("source", "target"))
