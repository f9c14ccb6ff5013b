from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from daal.data.images import FORMATS, MAX_PIXELS, check, decode, read
from daal.errors import DataError


def encoded(image, format="PNG", **options):
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def picture(height=20, width=10):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_decode_resizes_to_height_and_width_bilinearly():
    image = Image.fromarray(picture())
    array = decode(encoded(image), 32, 24)
    assert array.shape == (32, 24, 3) and array.dtype == np.uint8
    assert array.flags["C_CONTIGUOUS"] and array.flags["WRITEABLE"]
    assert np.array_equal(array, np.asarray(image.resize((24, 32), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("format", FORMATS)
def test_every_allowed_format_decodes(format):
    data = encoded(Image.new("RGB", (10, 20), (200, 60, 30)), format)
    assert check(data) is None
    assert np.abs(decode(data, 20, 10).astype(int) - (200, 60, 30)).max() < 8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_modes_become_rgb(mode):
    data = encoded(Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode))
    assert decode(data, 8, 8).min() == 255


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    levels = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    array = decode(encoded(Image.fromarray(levels)), 2, 2)
    assert array[..., 0].tolist() == [[0, 100], [200, 255]]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_turns_the_image_upright(format):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255  # The left half becomes the top when turned clockwise.
    exif = Image.Exif()
    exif[0x0112] = 6
    array = decode(encoded(Image.fromarray(pixels), format, exif=exif), 32, 16)
    assert array[:12].min() > 240 and array[20:].max() < 15


SIDE = int(MAX_PIXELS**0.5) + 64  # of too many pixels


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"hello", "not a readable image"),
        (b"\x89PNG\r\n\x1a\n", "not a readable image"),
        *((encoded(Image.new("RGB", (16, 16)), format), "not a readable image")
          for format in ("GIF", "PPM", "ICO")),
        (encoded(Image.fromarray(picture(128, 64)))[:-2000], "cut off"),
        (encoded(Image.new("1", (SIDE, SIDE))), "million are allowed"),
    ],
)  # fmt: skip
def test_what_can_t_be_used__has_a_reason(data, says):
    assert says in (check(data) or "")
    with pytest.raises(DataError, match=says):
        decode(data, 8, 8)


@pytest.mark.parametrize("missing", [1, 2])
def test_a_jpeg_without_its_end_marker_is_whole(missing, tmp_path):
    data = encoded(Image.fromarray(picture(128, 64)), "JPEG")
    file = tmp_path / "a.jpg"
    file.write_bytes(data[:-missing])
    assert read(file) == (data, None)  # what travels on is a whole file
    assert np.array_equal(decode(data[:-missing], 128, 64), decode(data, 128, 64))


@pytest.mark.parametrize(
    "options", [{}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 1}, {"progressive": True}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_that_lacks_pixels_is_refused_wherever_it_was_cut(options, mode):
    image = Image.fromarray(picture(4, 3)).resize((33, 48)).convert(mode)
    data = encoded(image, "JPEG", **options)
    whole = decode(data, 48, 33)
    read_after_all = [
        cut
        for cut in range(data.index(b"\xff\xda"), len(data))
        if check(data[:cut]) is None and np.array_equal(decode(data[:cut], 48, 33), whole)
    ]
    accepted = [cut for cut in range(len(data)) if check(data[:cut]) is None]
    assert accepted == read_after_all
    assert (len(data) - 2 in accepted) == (not options.get("progressive"))


def test_random_damage_gives_an_array_or_a_data_error():
    rng = np.random.default_rng(1)
    good = [encoded(Image.fromarray(picture(32, 16)), format) for format in FORMATS]
    for turn in range(300):
        data = bytearray(good[turn % len(good)])
        for place in rng.integers(0, len(data), 4):
            data[place] = rng.integers(256)
        if check(bytes(data)) is None:
            assert decode(bytes(data), 16, 8).shape == (16, 8, 3)
