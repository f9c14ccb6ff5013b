"""Pixels that are kept on a GPU are gathered there, and the host doesn't wait for them."""

import numpy as np
import pytest
from planted import planted
from test_training_step import config_of

from benchmarks.fake_cuda import CUDA, HostWaits, Watch
from benchmarks.fake_steps import process
from daal.data.plan import Plan
from pipelines.images import pixels
from pipelines.images.pixels import ImageSource, PixelReader
from pipelines.images.stream import kept_batches


@pytest.fixture
def reader(monkeypatch):
    """A reader of 600 small images, in the pretence of a GPU."""
    blocks = [np.zeros((num_images, 8, 4, 3), np.uint8) for num_images in (pixels.BLOCK, 88)]
    monkeypatch.setattr(pixels.ray, "get", lambda _: blocks)
    nothing = None
    with process(config_of("paper")):
        yield PixelReader(ImageSource(nothing, (), np.arange(600)), CUDA, "device", 0)


def first_batch(reader):
    plan = Plan(0, 1, 1, 16, 16, *[np.arange(600)] * 3)
    return next(kept_batches(plan, reader, reader, 0, 0, 1))


def test_a_batch(reader):
    with Watch() as watch:
        images_BHWC = first_batch(reader).images_BHWC
    assert images_BHWC.is_cuda and images_BHWC.shape == (32, 8, 4, 3)
    assert watch.launches[""].total() <= 5  # two copies, two lookups, one cat


def test_planted_bug__rows_on_the_host(reader):
    new = "self._on_device[torch.from_numpy(places)]"
    old = "self._on_device[index.to(self._on_device.device, non_blocking=True)]"
    with planted(PixelReader, "read", old, new), Watch():
        with pytest.raises(HostWaits, match="an index is copied from the host"):
            first_batch(reader)
