"""JPEG, PNG and kindred bytes to RGB arrays, and what is wrong with those that can't be read.

Bytes come from outside, so only the formats below are tried: Pillow knows dozens more, some of
which start other programs.
"""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from daal.data.jpeg_end import with_end
from daal.errors import DataError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
MAX_PIXELS = 64 * 1024 * 1024
MAX_BYTES = 256 * 1024 * 1024  # more than those pixels take uncompressed
UNREAD = "the file can't be read"  # begins a reason for which the image may be in order


def decode(data: bytes, height: int, width: int) -> npt.NDArray[np.uint8]:
    """The image in RGB, resized bilinearly: uint8 (height, width, 3), C-contiguous.

    EXIF orientation is applied. Palette, greyscale, 16-bit and CMYK images become RGB, an alpha
    channel is dropped, and of several frames the first is taken. Raises DataError for whatever
    `check` has a reason against, with that reason; the path and the remedy are the caller's to add.
    """
    _, image = _load(data)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(image, dtype=np.uint8)


def read(path: str | Path) -> tuple[bytes, str | None]:
    """(bytes, None), or (b"", why they are no image that can be used, in a few words).

    A JPEG that lacks only the marker at its end gets it here, so that it is whole from here on.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:  # before a file of terabytes is read
                return b"", too_many_bytes(size)
            data = file.read()
    except OSError as error:
        return b"", f"{UNREAD} ({error.strerror})"
    return checked(data)


def checked(data: bytes) -> tuple[bytes, str | None]:
    """As `read`, of bytes that were read already."""
    try:
        whole, _ = _load(data)
    except DataError as error:
        return b"", str(error)
    return whole, None


def opened(data: bytes) -> Image.Image:
    """The upright RGB image at its own size; or DataError, as `decode`."""
    return _load(data)[1]


def too_many_bytes(size: int) -> str:
    return (
        f"the file has {size / 1e6:,.0f} million bytes where {MAX_BYTES / 1e6:,.0f} million are "
        "allowed"
    )


def check(data: bytes) -> str | None:
    """Why `decode` would refuse these bytes, in a few words; None if it wouldn't.

    Decodes the whole image, since a cut-off file shows only at its end.
    """
    try:
        _load(data)
    except DataError as error:
        return str(error)
    return None


def _load(data: bytes) -> tuple[bytes, Image.Image]:
    """The whole file's bytes, and the upright RGB image at its own size; or DataError."""
    if not data:
        raise DataError("the file is empty")
    try:
        image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise DataError(_too_large("far more")) from None
    except Exception:  # Pillow's parsers raise nearly any type on hostile bytes.
        raise DataError(f"not a readable image ({', '.join(FORMATS)})") from None
    num_pixels = image.width * image.height
    if num_pixels > MAX_PIXELS:
        raise DataError(_too_large(f"{num_pixels / 1e6:.1f} million"))
    try:
        image.load()
        return data, _to_rgb(_upright(image))
    except (MemoryError, DataError):
        raise
    except Exception as error:
        is_cut = "truncated" in str(error).lower()
        if is_cut and (whole := with_end(data, image)):
            return _load(whole)
        raise DataError(f"the image data is {'cut off' if is_cut else 'damaged'}") from None


def _too_large(num_pixels: str) -> str:
    return f"the image has {num_pixels} pixels where {MAX_PIXELS / 1e6:.1f} million are allowed"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DataError("the image holds floating-point pixels")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit grey at 255, which leaves a white image.
        levels = np.asarray(image).astype(np.int64)
        if image.mode != "I" or levels.max() > 255:
            levels = levels // 257
        image = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says; as stored where the EXIF can't be read."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # Damaged metadata is no reason to lose an image.
        return image
