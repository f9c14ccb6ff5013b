"""Augmentation of whole batches: drawn on the host, done on the device that trains.

Shapes: B samples, C = 3 channels, H x W pixels, T tries at an erasing rectangle, D draws.
X = 2 (H + W) columns of the table, which says where the device finds each pixel.

Every random number is a pure function of the sample's seed and of the draw's name: there is no
generator with a state. So a sample at a given step of a run looks the same in any batch,
on any number of workers, on a CPU or a GPU, and after any restart. The seeds depend on nothing that
the device knows, so the host draws all numbers of a batch at once. The device gets a small table of
integers and does with it what is exact everywhere: a look-up, a subtraction, a division.
"""

from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from daal.config import AugmentConfig


class ChannelStatistics(NamedTuple):
    """Means and standard deviations of the channels, R, G, B, of pixels from 0 to 1."""

    mean_C: tuple[float, ...]
    std_C: tuple[float, ...]


# As torchvision's ResNet weights expect.
IMAGENET = ChannelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# Random erasing (Zhong et al. 2017, "Random Erasing Data Augmentation"): share of the image's area,
# and height over width, both uniform as in that paper's Algorithm 1.
ERASE_AREA = (0.02, 0.4)
ERASE_ASPECT = (0.3, 1 / 0.3)
# The paper tries until a rectangle fits. On 384x128 some 89% do, so that ten tries all fail for
# less than one sample in a billion, which then stays whole.
ERASE_TRIES = 10

FLIP = 0.5  # the probability that an image is mirrored


class Draw(IntEnum):
    """What a random number is for. ERASE_* take ERASE_TRIES numbers each from their value on."""

    FLIP = 0
    CROP_Y = 1
    CROP_X = 2
    ERASE = 3
    ERASE_Y = 4
    ERASE_X = 5
    ERASE_AREA = 100
    ERASE_ASPECT = 200


def sample_seeds(
    seed: int, iteration: int, epoch: int, step: int, sample_ids_B: NDArray[np.integer]
) -> NDArray[np.uint64]:
    """A seed for each sample of a step: uint64 (B,).

    `sample_ids_B` (integers) says which sample it is in terms that don't depend on the worker:
    its place in the step's global batch, or its row in the data set. Equal ids give equal
    seeds, hence equal augmentations.
    """
    state_B = np.zeros(len(sample_ids_B), np.uint64)
    for word in (seed, iteration, epoch, step):
        state_B = _mix(state_B + np.uint64((word + _GOLDEN) % 2**64))
    return _mix(state_B + sample_ids_B.astype(np.uint64) + np.uint64(_GOLDEN))


def uniforms(seeds_B: NDArray[np.uint64], *draws: int) -> NDArray[np.float64]:
    """A number in [0, 1) of each draw for each seed: float64 (D, B)."""
    steps_D = np.array([(draw + 1) * _GOLDEN % 2**64 for draw in draws], np.uint64)
    bits_DB = _mix(seeds_B + steps_D[:, None])
    # The highest 53 bits fill a float64's significand exactly.
    return (bits_DB >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_table(
    seeds_B: NDArray[np.uint64], height: int, width: int, config: AugmentConfig
) -> NDArray[np.int16]:
    """All that `augment` needs to know of a batch of images of one size: int16 (B, X).

    `seeds_B` is uint64, from `sample_seeds`. The columns, after each other:

        H   the row of the image that each row of the result comes from, -1 in the padding
        W   the same of its columns
        H   -1 for the rows of the erased rectangle, or else 0
        W   the same of its columns
    """
    flip_B, y_B, x_B = uniforms(seeds_B, Draw.FLIP, Draw.CROP_Y, Draw.CROP_X)
    y_BH = _window(y_B, height, config.pad)
    x_BW = _window(x_B, width, config.pad)
    x_BW = np.where(flip_B[:, None] < FLIP, width - 1 - x_BW, x_BW)
    columns = [_inside(y_BH, height), _inside(x_BW, width)]
    columns += _erasure(seeds_B, height, width, config.erase)
    return np.concatenate(columns, axis=1, dtype=np.int16, casting="same_kind")


def augment(
    images_BCHW: Tensor, table_BX: Tensor, statistics: ChannelStatistics = IMAGENET
) -> Tensor:
    """Flip, pad and crop, normalise, erase: float32 (B, 3, H, W) in channels_last layout.

    `images_BCHW` is uint8, `table_BX` the int16 of `draw_table`; both on the same device. The
    crop is of the images' own size, out of the image with `config.pad` black pixels on each
    side; black is before normalisation, as torchvision's Pad does it. Erased pixels are 0
    after normalisation, that is the statistics' mean colour, one of the fills of the erasing paper
    (random pixels do slightly better there; the mean is what re-ID code uses).

    With no padding and both probabilities 0 this equals `normalise`.

    Raises ValueError for other dtypes and shapes.
    """
    _check(images_BCHW)
    batch, _, height, width = images_BCHW.shape
    if table_BX.shape != (batch, 2 * (height + width)) or table_BX.dtype != torch.int16:
        raise ValueError(
            f"the table must be int16 of shape ({batch}, {2 * (height + width)}), not "
            f"{table_BX.dtype} of shape {tuple(table_BX.shape)}"
        )
    sides = [height, width, height, width]
    y_BH, x_BW, _, _ = torch.split(table_BX.long(), sides, 1)
    is_padding_BH, is_padding_BW, is_erased_BH, is_erased_BW = torch.split(table_BX < 0, sides, 1)
    samples_B = torch.arange(batch, device=images_BCHW.device)
    pixels_BHWC = images_BCHW.permute(0, 2, 3, 1)[  # -1 finds the last: any will do in the padding
        samples_B[:, None, None], y_BH[:, :, None], x_BW[:, None, :]
    ]
    padding_BHW = is_padding_BH[:, :, None] | is_padding_BW[:, None, :]
    pixels_BHWC.masked_fill_(padding_BHW[..., None], 0)
    erased_BHW = is_erased_BH[:, :, None] & is_erased_BW[:, None, :]
    normalised_BCHW = normalise(pixels_BHWC.permute(0, 3, 1, 2), statistics)
    return normalised_BCHW.masked_fill_(erased_BHW[:, None], 0.0)


def normalise(images_BCHW: Tensor, statistics: ChannelStatistics = IMAGENET) -> Tensor:
    """uint8 RGB images (B, 3, H, W) to float32, less the mean, over the deviation; same layout.

    Raises ValueError for anything but uint8 of that shape.
    """
    _check(images_BCHW)
    mean_C11, std_C11 = channel_statistics(images_BCHW.device, statistics)
    return images_BCHW.float().sub_(mean_C11).div_(std_C11)


@lru_cache
def channel_statistics(
    device: torch.device, statistics: ChannelStatistics
) -> tuple[Tensor, Tensor]:
    """Mean and deviation (3, 1, 1) on the scale of uint8.

    Made once for each device, because the host waits for a GPU meanwhile. Not to be changed.
    """
    with torch.inference_mode(False):
        mean_C11, std_C11 = (
            torch.tensor(values_C, device=device).mul(255)[:, None, None] for values_C in statistics
        )
    return mean_C11, std_C11


def _check(images_BCHW: Tensor) -> None:
    shape = tuple(images_BCHW.shape)
    if images_BCHW.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3:
        raise ValueError(
            f"images must be uint8 of shape (B, 3, H, W), not {images_BCHW.dtype} of shape {shape}"
        )


# ---- Drawing, on the host ---------------------------------------------------------------


def _window(uniforms_B: NDArray[np.float64], size: int, pad: int) -> NDArray[np.int64]:
    """(B, size) consecutive positions of an image with `pad` pixels around it."""
    return np.arange(size) + (_integers(uniforms_B, 2 * pad + 1) - pad)[:, None]


def _inside(positions: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return np.where((positions >= 0) & (positions < size), positions, -1)


def _erasure(
    seeds_B: NDArray[np.uint64], height: int, width: int, probability: float
) -> list[NDArray[np.int64]]:
    """-1 for each row (B, H) and column (B, W) of one rectangle; no rows if there is none."""
    erase_B, y_B, x_B = uniforms(seeds_B, Draw.ERASE, Draw.ERASE_Y, Draw.ERASE_X)
    area_TB, aspect_TB = (
        uniforms(seeds_B, *range(draw, draw + ERASE_TRIES)) * (high - low) + low
        for draw, (low, high) in ((Draw.ERASE_AREA, ERASE_AREA), (Draw.ERASE_ASPECT, ERASE_ASPECT))
    )
    area_TB *= height * width
    tall_TB = np.sqrt(area_TB * aspect_TB).round().astype(np.int64)
    wide_TB = np.sqrt(area_TB / aspect_TB).round().astype(np.int64)
    fits_TB = (tall_TB > 0) & (wide_TB > 0) & (tall_TB < height) & (wide_TB < width)
    first_1B = fits_TB.argmax(0)[None]
    tall_B, wide_B = (np.take_along_axis(size_TB, first_1B, 0)[0] for size_TB in (tall_TB, wide_TB))
    top_B, left_B = _integers(y_B, height - tall_B + 1), _integers(x_B, width - wide_B + 1)
    tall_B = np.where((erase_B < probability) & fits_TB.any(0), tall_B, 0)
    marks = []
    for size, start_B, length_B in ((height, top_B, tall_B), (width, left_B, wide_B)):
        after_start_BN = np.arange(size) - start_B[:, None]
        marks.append(np.where((after_start_BN >= 0) & (after_start_BN < length_B[:, None]), -1, 0))
    return marks


def _integers(uniforms_B: NDArray[np.float64], count: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """0..count-1, evenly. The product stays below `count`, which is far below 2^52."""
    return (uniforms_B * count).astype(np.int64)


# The mixer of SplitMix64 (Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number
# Generators"; constants by Stafford, variant 13), counted along with the golden ratio.
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
