"""JPEG files that lack only the marker at their end, as some cameras write them.

libjpeg fills missing parts of an image with grey, and Pillow doesn't tell. So the end of the file
is tested: other bytes in place of the marker must not change a pixel. Where pixels are missing,
they would.
"""

from io import BytesIO

from PIL import Image

END = b"\xff\xd9"
# The first bit after the end is 0 in one and 1 in the others. 4096 bytes are more than any block of
# 16 x 16 pixels can take. Where a file was cut off before a restart marker, the decoder reads
# on only after a marker of the right number.
FIRST_0, FIRST_1 = 4096 * b"\x00", 4096 * b"\xaa"
RESTARTS = [bytes([0xFF, 0xD0 + number]) for number in range(8)]
OTHER_ENDS = (FIRST_0 + END, *(FIRST_1 + restart + FIRST_1 + END for restart in RESTARTS))


def with_end(data: bytes, image: Image.Image) -> bytes | None:
    """The bytes of a JPEG with the marker at their end, or None if more than that is missing.

    `image` is what Pillow has opened of them. Progressive files, and those that store one colour
    after the other, are None: a whole part can be missing there that leaves no trace.
    """
    if image.format != "JPEG" or "progressive" in image.info or not _is_one_scan(data, image):
        return None
    body = data.rstrip(b"\xff")  # half a marker
    try:
        whole = _pixels(body + END)
        is_whole = all(_pixels(body + other) == whole for other in OTHER_ENDS)
    except MemoryError:
        raise
    except Exception:  # Pillow's parsers raise nearly any type
        return None
    return body + END if is_whole else None


def _is_one_scan(data: bytes, image: Image.Image) -> bool:
    """Whether the first scan has all the channels."""
    at = 2
    while data[at : at + 1] == b"\xff":
        if data[at + 1 : at + 2] == b"\xda":
            return data[at + 4 : at + 5] == bytes([len(image.getbands())])
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _pixels(data: bytes) -> bytes:
    with Image.open(BytesIO(data), formats=("JPEG",)) as image:
        return image.tobytes()
