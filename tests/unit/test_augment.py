"""Augmentation: a function of the sample's seed alone, and the distribution that is promised."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daal.config import AugmentConfig
from daal.data.augment import Draw, augment, draw_table, normalise, sample_seeds, uniforms

PLAIN = AugmentConfig(pad=0, erase=0)
ERASED = PLAIN.model_copy(update={"erase": 1.0})


def random_images(num, height=48, width=16):
    generator = torch.Generator().manual_seed(num)
    return torch.randint(1, 256, (num, 3, height, width), generator=generator, dtype=torch.uint8)


def seeds_of(num, step=0):
    return sample_seeds(7, 1, 2, step, np.arange(num))


def augmented(images, seeds, config):
    return augment(images, torch.from_numpy(draw_table(seeds, *images.shape[2:], config)))


def is_mirrored(seeds):
    return uniforms(seeds, Draw.FLIP)[0] < 0.5


def erased(num, height, width, probability):
    """Where pixels are erased: (num, height, width)."""
    config = PLAIN.model_copy(update={"erase": probability})
    table = draw_table(seeds_of(num), height, width, config)
    rows, columns = np.split(table[:, height + width :] < 0, [height], axis=1)
    return rows[:, :, None] & columns[:, None, :]


def test_seeds_depend_on_every_part():
    ids = np.arange(8)
    parts = itertools.product((0, 1, 2**40), range(3), range(3), range(3))
    seeds = np.stack([sample_seeds(*part, ids) for part in parts])
    assert seeds.dtype == np.uint64
    assert len(np.unique(seeds)) == seeds.size


def test_what_is_drawn_stays():
    """The numbers of release 0.1, which are the same on every machine."""
    digest = hashlib.sha256()
    for config in (AugmentConfig(), AugmentConfig(pad=40, erase=0.2)):
        for part in ((0, 0, 0, 0), (2**63 - 1, 50, 70, 999)):
            seeds = sample_seeds(*part, np.arange(40) ** 2)
            digest.update(draw_table(seeds, 64, 32, config).tobytes())
    assert digest.hexdigest()[:16] == "7ef278f4f8bd96b3"


@settings(max_examples=20)
@given(order=st.permutations(range(12)), cut=st.integers(1, 11))
def test_does_not_depend_on_the_batch(order, cut):
    images, seeds = random_images(12), seeds_of(12)
    whole = augmented(images, seeds, AugmentConfig())
    for part in (order[:cut], order[cut:]):
        assert augmented(images[part], seeds[part], AugmentConfig()).equal(whole[part])
    assert not augmented(images, seeds_of(12, step=1), AugmentConfig()).equal(whole)


def test_normalise_by_hand():
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(normalise(images).flatten(), expected, rtol=1e-6)


def test_half_of_the_images_are_mirrored_and_nothing_else_is_done_to_them():
    images, seeds = random_images(40), seeds_of(40)
    expected = images.clone()
    expected[is_mirrored(seeds)] = images.flip(3)[is_mirrored(seeds)]
    assert augmented(images, seeds, PLAIN).equal(normalise(expected))


def test_crop_is_a_window_of_the_padded_image():
    pad, (height, width) = 3, (12, 6)
    seeds = seeds_of(900)
    seeds = seeds[~is_mirrored(seeds)][:400]
    images = random_images(400, height, width)
    cropped = augmented(images, seeds, PLAIN.model_copy(update={"pad": pad}))
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


def test_erased_rectangles():
    height, width, num = 96, 32, 3000
    mask = erased(num, height, width, 1.0)
    areas, aspects, tops, lefts = [], [], [], []
    for image in mask[mask.any((1, 2))]:
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
    for places in (tops, lefts):
        assert (min(places), max(places)) == (0, 1)
        assert np.mean(places) == pytest.approx(0.5, abs=0.03)
    assert erased(num, 24, 8, 0.3).any((1, 2)).mean() == pytest.approx(0.3, abs=0.03)


def test_erased_pixels_are_the_mean_and_the_rest_is_untouched():
    images, seeds = random_images(20), seeds_of(20)
    found = augmented(images, seeds, ERASED)
    mask = torch.from_numpy(erased(20, 48, 16, 1.0))[:, None].expand_as(found)
    assert (found[mask] == 0).all()
    assert found[~mask].equal(augmented(images, seeds, PLAIN)[~mask])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu():
    images = random_images(256, 384, 128)
    table = torch.from_numpy(draw_table(seeds_of(256), 384, 128, AugmentConfig()))
    assert augment(images.cuda(), table.cuda()).cpu().equal(augment(images, table))
