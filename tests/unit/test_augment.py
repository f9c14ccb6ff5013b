"""Augmentation: a function of the sample's seed alone, and the distribution that is promised."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from daal import augment as module
from daal.augment import Draw, augment, normalise, sample_seeds, uniforms
from daal.config import AugmentConfig

PLAIN = AugmentConfig(flip=0, pad=0, erase=0)


def random_images(num: int, height: int = 48, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(num)
    return torch.randint(1, 256, (num, 3, height, width), generator=generator, dtype=torch.uint8)


def seeds_of(num: int, step: int = 0) -> Tensor:
    return sample_seeds(7, 1, 2, step, torch.arange(num))


def splitmix64(state: int) -> tuple[int, int]:
    """The published generator, in Python's own integers: new state and output."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    z = state
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return state, z ^ (z >> 31)


@given(seed=st.integers(-(2**63), 2**63 - 1))
def test_uniforms_are_splitmix64(seed: int) -> None:
    state = seed % 2**64
    for draw in range(5):
        state, output = splitmix64(state)
        expected = (output >> 11) / 2**53
        assert uniforms(torch.tensor([seed]), draw).item() == expected
        assert 0 <= expected < 1


def test_first_outputs_of_splitmix64_are_the_published_ones() -> None:
    # Seed 1234567: Rosetta Code's reference values.
    state, outputs = 1234567, []
    for _ in range(3):
        state, output = splitmix64(state)
        outputs.append(output)
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_seeds_depend_on_every_part() -> None:
    ids = torch.arange(8)
    parts = itertools.product((0, 1, 2**40), range(3), range(3), range(3))
    seeds = torch.stack([sample_seeds(*part, ids) for part in parts])
    assert seeds.dtype == torch.int64
    assert len(seeds.unique()) == seeds.numel()
    assert sample_seeds(3, 0, 0, 0, ids.int()).equal(sample_seeds(3, 0, 0, 0, ids))


@settings(max_examples=20)
@given(order=st.permutations(range(12)), cut=st.integers(1, 11))
def test_does_not_depend_on_the_batch(order: list[int], cut: int) -> None:
    images, seeds = random_images(12), seeds_of(12)
    whole = augment(images, seeds, AugmentConfig())
    for part in (order[:cut], order[cut:]):
        assert augment(images[part], seeds[part], AugmentConfig()).equal(whole[part])
    assert not augment(images, seeds_of(12, step=1), AugmentConfig()).equal(whole)


def test_memory_layout_changes_nothing() -> None:
    images, seeds = random_images(6), seeds_of(6)
    expected = augment(images, seeds, AugmentConfig())
    assert expected.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last
    assert augment(images.to(memory_format=layout), seeds, AugmentConfig()).equal(expected)
    assert normalise(images.to(memory_format=layout)).is_contiguous(memory_format=layout)
    assert images.equal(random_images(6))


def test_normalise_by_hand() -> None:
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(normalise(images).flatten(), expected, rtol=1e-6)


def test_nothing_asked_for_is_normalise() -> None:
    images = random_images(9)
    assert augment(images, seeds_of(9), PLAIN).equal(normalise(images))


def test_flip_always() -> None:
    images = random_images(9)
    flipped = augment(images, seeds_of(9), PLAIN.model_copy(update={"flip": 1.0}))
    assert flipped.equal(normalise(images.flip(3)))


def test_crop_is_a_window_of_the_padded_image() -> None:
    pad, (height, width) = 3, (12, 6)
    images, seeds = random_images(400, height, width), seeds_of(400)
    cropped = augment(images, seeds, PLAIN.model_copy(update={"pad": pad}))
    padded = torch.nn.functional.pad(images, (pad,) * 4)
    windows = []
    for image, crop in zip(padded, cropped, strict=True):
        found = [
            (y, x)
            for y, x in itertools.product(range(2 * pad + 1), repeat=2)
            if normalise(image[None, :, y : y + height, x : x + width])[0].equal(crop)
        ]
        assert len(found) == 1
        windows += found
    assert len(set(windows)) == (2 * pad + 1) ** 2  # 400 draws of 49: each is there


def test_pad_larger_than_the_image() -> None:
    images = random_images(50, 4, 4)
    cropped = augment(images, seeds_of(50), PLAIN.model_copy(update={"pad": 9}))
    assert cropped.isfinite().all()


def test_erased_rectangles() -> None:
    height, width, num = 96, 32, 3000
    mask = module._erasing_mask(seeds_of(num), height, width, 1.0)
    areas, aspects, tops, lefts = [], [], [], []
    for image in mask[mask.any((1, 2))].numpy():
        rows, columns = image.any(1).nonzero()[0], image.any(0).nonzero()[0]
        tall, wide = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert image.sum() == tall * wide  # one full rectangle
        areas.append(tall * wide / (height * width))
        aspects.append(tall / wide)
        tops.append(rows[0] / (height - tall))
        lefts.append(columns[0] / (width - wide))
    assert len(areas) >= num - 3
    # Sides are rounded to whole pixels, so that the smallest ones reach a little beyond.
    assert 0.01 < min(areas) < 0.04 and 0.38 < max(areas) < 0.43
    assert 0.2 < min(aspects) < 0.35 and 2.8 < max(aspects) < 5
    # Every place is as likely: the share of the free way to the far side averages a half.
    assert np.mean(tops) == pytest.approx(0.5, abs=0.03)
    assert np.mean(lefts) == pytest.approx(0.5, abs=0.03)
    assert min(tops) == min(lefts) == 0 and max(tops) == max(lefts) == 1


def test_erased_pixels_are_the_mean_and_the_rest_is_untouched() -> None:
    images, seeds = random_images(20), seeds_of(20)
    erased = augment(images, seeds, PLAIN.model_copy(update={"erase": 1.0}))
    mask = module._erasing_mask(seeds, 48, 16, 1.0)[:, None].expand_as(erased)
    assert (erased[mask] == 0).all()
    assert erased[~mask].equal(normalise(images)[~mask])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2)])
def test_images_too_small_to_erase_from(size: tuple[int, int]) -> None:
    assert augment(random_images(30, *size), seeds_of(30), AugmentConfig(erase=1)).isfinite().all()


def test_distribution() -> None:
    num = 20_000
    seeds = seeds_of(num)
    draws = {draw: uniforms(seeds, draw).numpy() for draw in Draw}
    for values in draws.values():
        counts = np.histogram(values, bins=20, range=(0, 1))[0]
        # Chi-squared of 19 degrees of freedom: above 50 in one of 10,000 draws.
        assert ((counts - num / 20) ** 2 / (num / 20)).sum() < 50
    for one, other in itertools.combinations(draws.values(), 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    mask = module._erasing_mask(seeds[:4000], 24, 8, 0.3)
    assert mask.any((1, 2)).float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_empty_batch() -> None:
    assert augment(random_images(4)[:0], seeds_of(0), AugmentConfig()).shape == (0, 3, 48, 16)


def test_refuses_other_inputs() -> None:
    images, seeds = random_images(4), seeds_of(4)
    with pytest.raises(ValueError, match="uint8"):
        augment(images.float(), seeds, PLAIN)
    with pytest.raises(ValueError, match="uint8"):
        normalise(images[:, :2])
    with pytest.raises(ValueError, match="seeds"):
        augment(images, seeds[:2], PLAIN)
    with pytest.raises(ValueError, match="seeds"):
        augment(images, seeds.int(), PLAIN)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu() -> None:
    images, seeds = random_images(256, 384, 128), seeds_of(256)
    on_gpu = augment(
        images.cuda(), sample_seeds(7, 1, 2, 0, torch.arange(256).cuda()), AugmentConfig()
    )
    assert on_gpu.cpu().equal(augment(images, seeds, AugmentConfig()))
