"""Augmentation as release 0.1 did it, one draw after the other, all in torch on the device.

`daal.data.augment` must give the same bits.
Shapes: B samples, C = 3 channels, H x W pixels, T tries.
"""

import torch
from torch import Tensor

from daal.config import AugmentConfig
from daal.data.augment import ERASE_AREA, ERASE_ASPECT, ERASE_TRIES, Draw, normalise


def sample_seeds(seed: int, iteration: int, epoch: int, step: int, sample_ids_B: Tensor) -> Tensor:
    """The bits of `daal.data.augment.sample_seeds` as int64 (B,)."""
    state_B = torch.zeros_like(sample_ids_B, dtype=torch.int64)
    for word in (seed, iteration, epoch, step):
        state_B = _mix(state_B + _signed(word + _GOLDEN))
    return _mix(state_B + sample_ids_B.to(torch.int64) + _signed(_GOLDEN))


def uniforms(seeds_B: Tensor, draw: int) -> Tensor:
    """A number in [0, 1) for each seed, different for each draw: float64, shaped as the seeds."""
    bits_B = _mix(seeds_B + _signed((draw + 1) * _GOLDEN))
    # The highest 53 bits fill a float64's significand exactly.
    return _shift_right(bits_B, 11).double() * 2.0**-53


def augment(images_BCHW: Tensor, seeds_B: Tensor, config: AugmentConfig) -> Tensor:
    """Flip, pad and crop, normalise, erase: float32 (B, 3, H, W) in channels_last layout."""
    cropped_BCHW = _flip_and_crop(images_BCHW, seeds_B, config)
    height, width = images_BCHW.shape[2:]
    erased_BHW = _erasing_mask(seeds_B, height, width, config.erase)
    return normalise(cropped_BCHW).masked_fill_(erased_BHW[:, None], 0.0)


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


# SplitMix64's mixer. int64 arithmetic wraps like uint64's; only the right shift differs.
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
