"""Images that can't be read, and odd ones that can."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bad_input import PICTURE, VICTIM, Case, encoded, market, picture, validate, write
from PIL import Image

FORMATS = {"JPEG": 4, "PNG": 3, "BMP": 1, "WEBP": 1, "TIFF": 1}  # and how often each is cut

# Whatever the reason, this is in front of it: 1 of 18 images is more than 5 %.
TOO_MANY = "1 of 18 images looked at (18 in all) in target can't be used"
SHOWN = "(e.g. 'bounding_box_train/0002_c1s1_000002_00.jpg'); repair"

CUT_OFF = encoded(picture(3, 64, 32))[:-60]


def image(name: str, data: bytes | Callable[[], bytes], *says: str) -> Case:
    """One image of the target's is such; with nothing to say, it is read."""

    def make() -> list[str]:
        market("source")
        market("target")
        write(VICTIM, data if isinstance(data, bytes) else data())
        return validate()

    return Case("Images", name, make, 3 if says else 0, (TOO_MANY, *says, SHOWN) if says else ())


def cut() -> list[Case]:
    rng = np.random.default_rng(0)
    cases = []
    for format, times in FORMATS.items():
        data = encoded(picture(1, 64, 32), format)
        for share in sorted(rng.uniform(0.02, 0.95, times)):
            kept = int(share * len(data))
            reason = f"{TOO_MANY}, and no more than max_bad_share=0.05 may be"
            cases.append(image(f"{format} cut off at {share:.1%}", data[:kept], reason))
    return cases


def damaged() -> list[Case]:
    """Bytes in the image's middle overwritten: only what Pillow notices is listed."""
    data = bytearray(encoded(picture(2, 64, 32), "PNG"))
    data[2000:2016] = np.random.default_rng(1).bytes(16)
    return [image("PNG overwritten in the middle", bytes(data), "damaged: 1")]


def bomb() -> bytes:
    """A PNG of 100 bytes that says it has 3,600 million pixels."""
    data = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def upside_down() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3
    return encoded(picture(), exif=exif)


def spoiled(spoil: Callable[[], object], *settings: str) -> Callable[[], list[str]]:
    def make() -> list[str]:
        market("source")
        market("target")
        spoil()
        return validate(*settings)

    return make


def sparse() -> None:
    os.truncate(VICTIM, 1 << 40)


def many(count: int, data: bytes) -> None:
    """`count` of 18 images are such."""
    for file in sorted(Path("target").rglob("*.jpg"))[:count]:
        file.write_bytes(data)


def among_thousands() -> None:
    """More images than are looked at, and a tenth of them broken."""
    first = Path(write("target/bounding_box_train/0005_c1s1_000000_00.jpg"))
    broken = Path(write("target/bounding_box_train/0006_c1s1_000000_00.jpg", CUT_OFF))
    for number in range(1, 1500):
        of = broken if number % 10 == 0 else first
        os.link(of, of.with_name(f"{of.name[:4]}_c1s1_{number:06}_00.jpg"))


OTHER = [
    # name, bytes, reason
    ("empty file", b"", "the file is empty: 1"),
    ("HTML named .jpg", b"<!doctype html><title>404</title>", "not a readable image"),
    ("a pickle named .jpg", b"cos\nmkdir\n(S'made'\ntR.", "not a readable image"),
    ("EPS named .jpg, which Pillow gives to Ghostscript", encoded(picture(), "EPS"),
     "not a readable image"),
    ("JPEG header alone", PICTURE[:20], "not a readable image"),
    ("JPEG without its last lines", CUT_OFF, "the image data is cut off"),
    ("PNG of 3,600 million pixels by its header", bomb(), "million are allowed"),
    ("PNG of 67 million and some pixels", encoded(Image.new("1", (8200, 8200)), "PNG"),
     "the image has 67.2 million pixels where 67.1 million are allowed"),
    ("TIFF of floating-point pixels",
     encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "floating-point pixels"),
]  # fmt: skip

READ = [
    ("CMYK JPEG", encoded(picture().convert("CMYK"))),
    ("palette PNG named .jpg", encoded(picture().convert("P"), "PNG")),
    ("PNG with transparency", encoded(picture().convert("RGBA"), "PNG")),
    ("JPEG turned by EXIF", upside_down()),
    ("JPEG with damaged EXIF", encoded(picture(), exif=b"Exif\0\0no TIFF")),
    ("JPEG with bytes behind its end", PICTURE + b"more"),
    ("4,000 x 2,000 pixels", encoded(Image.new("RGB", (2000, 4000)))),
]

CASES = [
    *(image(name, data, reason) for name, data, reason in OTHER),
    *(image(name, data) for name, data in READ),
    *cut(),
    *damaged(),
    Case("Images", "file of a terabyte", spoiled(sparse), 3,
         (TOO_MANY, "the file has 1,099,512 million bytes where 268 million are allowed")),
    Case("Images", "one of 18, 10 % allowed",
         spoiled(lambda: many(1, b"no image"), "max_bad_share=0.1"), 0,
         ("target: not a readable image (JPEG, PNG, BMP, WEBP, TIFF): 1 (e.g. 'bounding_box_test/",
          "of 18 images looked at (18 in all); left out of the run unless they are repaired")),
    Case("Images", "all of them", spoiled(lambda: many(18, b"no image")), 3,
         ("18 of 18 images looked at",)),
    Case("Images", "150 of 1,501 more, which are only sampled", spoiled(among_thousands), 3,
         ("of 512 images looked at (1,519 in all)", "the image data is cut off")),
    Case("Images", "the same, 9 % allowed",
         spoiled(among_thousands, "max_bad_share=0.09"), 0,
         ("of 512 images looked at (1,519 in all)", "If the others are like these, the run will")),
    Case("Images", "in the source's gallery, which no run reads",
         spoiled(lambda: write("source/query/0007_c1s1_000007_00.jpg", b"")), 0, ()),
]  # fmt: skip
