"""Images that can't be read, and odd ones that can."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bad_input import PICTURE, VALIDATE, VICTIM, Case, both_sets, case, encoded, picture, write
from PIL import Image

CUT_OFF = encoded(picture(3, 64, 32))[:-60]


def overwritten() -> bytes:
    data = bytearray(encoded(picture(2, 64, 32), "PNG"))
    data[2000:2016] = np.random.default_rng(1).bytes(16)
    return bytes(data)


def bomb() -> bytes:
    """A PNG of 100 bytes that says it has 3,600 million pixels."""
    data = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def add_thousands() -> None:
    """More images than are looked at, and a tenth of them broken."""
    first = Path(write("target/bounding_box_train/0005_c1s1_000000_00.jpg"))
    broken = Path(write("target/bounding_box_train/0006_c1s1_000000_00.jpg", CUT_OFF))
    for number in range(1, 1500):
        of = broken if number % 10 == 0 else first
        os.link(of, of.with_name(f"{of.name[:4]}_c1s1_{number:06}_00.jpg"))


def images(name: str, spoil: Callable[[], object], code: int, settings: str = "") -> Case:
    def make() -> None:
        both_sets()
        spoil()

    return case("Images", name, make, VALIDATE + settings, code)


REFUSED = {
    "empty file": b"",
    "a pickle named .jpg": b"cos\nmkdir\n(S'made'\ntR.",
    "EPS named .jpg, which Pillow gives to Ghostscript": encoded(picture(), "EPS"),
    "JPEG without its last lines": CUT_OFF,
    "PNG overwritten in the middle": overwritten(),
    "PNG of 3,600 million pixels by its header": bomb(),
    "TIFF of floating-point pixels": encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"),
}
READ = {
    "CMYK JPEG": encoded(picture().convert("CMYK")),
    "palette PNG named .jpg": encoded(picture().convert("P"), "PNG"),
    "JPEG with damaged EXIF": encoded(picture(), exif=b"Exif\0\0no TIFF"),
    "JPEG with bytes after its end": PICTURE + b"more",
}

CASES = [
    # One image of 18 is more than 5 %.
    *(images(name, lambda data=data: write(VICTIM, data), 3) for name, data in REFUSED.items()),
    *(images(name, lambda data=data: write(VICTIM, data), 0) for name, data in READ.items()),
    images("file of a terabyte", lambda: os.truncate(VICTIM, 1 << 40), 3),
    images("one of 18, 10 % allowed", lambda: write(VICTIM, b"no image"), 0, " max_bad_share=0.1"),
    images("150 of 1,501 more, which are only sampled", add_thousands, 3),
    images("the same, 9 % allowed", add_thousands, 0, " max_bad_share=0.09"),
    images("in the source's gallery, which no run reads",
           lambda: write("source/query/0007_c1s1_000007_00.jpg", b""), 0),
]  # fmt: skip
