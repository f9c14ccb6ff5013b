"""Augmentation of whole batches on the device that trains: flip, padded crop, random erasing.

Shapes: B samples, C = 3 channels, H x W pixels, T tries at an erasing rectangle.

Every random number is a pure function of the sample's seed and of the draw's name: there is no
generator with a state. So a sample at a given step of a run looks the same in any batch,
on any number of workers, on a CPU or a GPU, and after any restart. To keep the devices
equal to the last bit, nothing here uses a function whose rounding they don't share: integer
arithmetic, + - * / and sqrt are exact or correctly rounded everywhere; exp and log aren't.
"""

from enum import IntEnum
from functools import lru_cache

import torch
from torch import Tensor

from daal.config import AugmentConfig

# ImageNet's channel means and standard deviations, as torchvision's ResNet weights expect.
MEAN_C = (0.485, 0.456, 0.406)
STD_C = (0.229, 0.224, 0.225)

# Random erasing (Zhong et al. 2017, "Random Erasing Data Augmentation"): share of the image's area,
# and height over width, both uniform as in that paper's Algorithm 1.
ERASE_AREA = (0.02, 0.4)
ERASE_ASPECT = (0.3, 1 / 0.3)
# The paper tries until a rectangle fits. On 384x128 some 89% do, so that ten tries all fail for
# less than one sample in a billion, which then stays whole.
ERASE_TRIES = 10


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


def sample_seeds(seed: int, iteration: int, epoch: int, step: int, sample_ids_B: Tensor) -> Tensor:
    """A seed for each sample of a step: int64 (B,), on the device of `sample_ids_B`.

    `sample_ids_B` (integers) says which sample it is in terms that don't depend on the worker:
    its place in the step's global batch, or its row in the data set. Equal ids give equal
    seeds, hence equal augmentations.
    """
    state_B = torch.zeros_like(sample_ids_B, dtype=torch.int64)
    for word in (seed, iteration, epoch, step):
        state_B = _mix(state_B + _signed(word + _GOLDEN))
    return _mix(state_B + sample_ids_B.to(torch.int64) + _signed(_GOLDEN))


def uniforms(seeds_B: Tensor, draw: int) -> Tensor:
    """A number in [0, 1) for each seed, different for each draw: float64, shaped as the seeds."""
    bits_B = _mix(seeds_B + _signed((draw + 1) * _GOLDEN))
    # The highest 53 bits fill a float64's significand exactly.
    return _shift_right(bits_B, 11).double() * 2.0**-53


def normalise(images_BCHW: Tensor) -> Tensor:
    """uint8 RGB images (B, 3, H, W) to float32 with ImageNet's mean and deviation, same layout.

    Raises ValueError for anything but uint8 of that shape.
    """
    _check(images_BCHW)
    mean_C11, std_C11 = _statistics(images_BCHW.device)
    return images_BCHW.float().sub_(mean_C11).div_(std_C11)


@lru_cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation on the scale of uint8; made once, as a GPU is waited for meanwhile."""
    with torch.inference_mode(False):
        mean_C11, std_C11 = (
            torch.tensor(values_C, device=device).mul(255)[:, None, None]
            for values_C in (MEAN_C, STD_C)
        )
    return mean_C11, std_C11


def augment(images_BCHW: Tensor, seeds_B: Tensor, config: AugmentConfig) -> Tensor:
    """Flip, pad and crop, normalise, erase: float32 (B, 3, H, W) in channels_last layout.

    `images_BCHW` is uint8, `seeds_B` int64 from `sample_seeds`; both on the same device. The
    crop is of the images' own size, out of the image with `config.pad` black pixels on each
    side; black is before normalisation, as torchvision's Pad does it. Erased pixels are 0
    after normalisation, that is ImageNet's mean colour, one of the fills of the erasing paper
    (random pixels do slightly better there; the mean is what re-ID code uses).

    With no padding and both probabilities 0 this equals `normalise`.

    Raises ValueError for other dtypes and shapes.
    """
    _check(images_BCHW)
    if seeds_B.shape != images_BCHW.shape[:1] or seeds_B.dtype != torch.int64:
        raise ValueError(
            f"seeds must be int64 of shape ({len(images_BCHW)},), not {seeds_B.dtype} "
            f"of shape {tuple(seeds_B.shape)}"
        )
    cropped_BCHW = _flip_and_crop(images_BCHW, seeds_B, config)
    height, width = images_BCHW.shape[2:]
    erased_BHW = _erasing_mask(seeds_B, height, width, config.erase)
    return normalise(cropped_BCHW).masked_fill_(erased_BHW[:, None], 0.0)


def _check(images_BCHW: Tensor) -> None:
    shape = tuple(images_BCHW.shape)
    if images_BCHW.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3:
        raise ValueError(
            f"images must be uint8 of shape (B, 3, H, W), not {images_BCHW.dtype} of shape {shape}"
        )


def _flip_and_crop(images_BCHW: Tensor, seeds_B: Tensor, config: AugmentConfig) -> Tensor:
    """The uint8 pixels of the crop. Each output pixel looks up where it comes from."""
    device = images_BCHW.device
    height, width = images_BCHW.shape[2:]
    flipped_B = uniforms(seeds_B, Draw.FLIP) < config.flip
    top_B, left_B = (
        _integers(uniforms(seeds_B, draw), 2 * config.pad + 1) - config.pad
        for draw in (Draw.CROP_Y, Draw.CROP_X)
    )
    y_BH = torch.arange(height, device=device) + top_B[:, None]
    x_BW = torch.arange(width, device=device) + left_B[:, None]
    x_BW = (width - 1 - x_BW).where(flipped_B[:, None], x_BW)
    padding_BHW = _outside(y_BH, height)[:, :, None] | _outside(x_BW, width)[:, None, :]
    pixels_BHWC = images_BCHW.permute(0, 2, 3, 1)[
        torch.arange(len(images_BCHW), device=device)[:, None, None],
        y_BH.clamp(0, height - 1)[:, :, None],
        x_BW.clamp(0, width - 1)[:, None, :],
    ]
    return pixels_BHWC.masked_fill_(padding_BHW[..., None], 0).permute(0, 3, 1, 2)


def _outside(index: Tensor, size: int) -> Tensor:
    return (index < 0) | (index >= size)


def _erasing_mask(seeds_B: Tensor, height: int, width: int, probability: float) -> Tensor:
    """True where a pixel is erased: one rectangle, or none, for each sample: bool (B, H, W)."""
    tries_T = torch.arange(ERASE_TRIES, device=seeds_B.device)
    area_BT, aspect_BT = (
        _tries(seeds_B, draw) * (high - low) + low
        for draw, (low, high) in ((Draw.ERASE_AREA, ERASE_AREA), (Draw.ERASE_ASPECT, ERASE_ASPECT))
    )
    area_BT = area_BT * (height * width)
    tall_BT = (area_BT * aspect_BT).sqrt().round().long()
    wide_BT = (area_BT / aspect_BT).sqrt().round().long()
    fits_BT = (tall_BT > 0) & (wide_BT > 0) & (tall_BT < height) & (wide_BT < width)
    # The first try that fits; argmin is of distinct numbers, so that all devices agree on it.
    first_B1 = tries_T.where(fits_BT, tries_T + ERASE_TRIES).argmin(1, keepdim=True)
    tall_B, wide_B = (size_BT.gather(1, first_B1).squeeze(1) for size_BT in (tall_BT, wide_BT))
    erase_B = (uniforms(seeds_B, Draw.ERASE) < probability) & fits_BT.any(1)

    top_B = _integers(uniforms(seeds_B, Draw.ERASE_Y), height - tall_B + 1)
    left_B = _integers(uniforms(seeds_B, Draw.ERASE_X), width - wide_B + 1)
    rows_BH = _within(height, top_B, tall_B)
    columns_BW = _within(width, left_B, wide_B)
    return erase_B[:, None, None] & rows_BH[:, :, None] & columns_BW[:, None, :]


def _tries(seeds_B: Tensor, draw: Draw) -> Tensor:
    return torch.stack([uniforms(seeds_B, draw + t) for t in range(ERASE_TRIES)], dim=1)


def _integers(uniforms_B: Tensor, count: int | Tensor) -> Tensor:
    """0..count-1, evenly. The product stays below `count`, which is far below 2^52."""
    return (uniforms_B * count).long()


def _within(size: int, start_B: Tensor, length_B: Tensor) -> Tensor:
    position_N = torch.arange(size, device=start_B.device)
    return (position_N >= start_B[:, None]) & (position_N < (start_B + length_B)[:, None])


# The mixer of SplitMix64 (Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number
# Generators"; constants by Stafford, variant 13), counted along with the golden ratio. int64
# arithmetic wraps like uint64's; only the right shift differs.
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shift_right(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Shift in zeros, where int64's own shift copies the sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _signed(word: int) -> int:
    """The int64 of the same lowest 64 bits."""
    return (word + 2**63) % 2**64 - 2**63
