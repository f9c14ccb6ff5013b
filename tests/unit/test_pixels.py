"""Which images are kept decoded, and batches made ahead of their use."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from daal.config import Config
from pipelines.images.ingest import Images
from pipelines.images.pixels import BLOCK, STORE_SHARE, ImageSource, Pixels, pixel_reader
from pipelines.images.prefetch import ahead
from pipelines.images.stream import FedBatch

BYTES = 32 * 16 * 3  # of an image


def images(num_train, num_gallery):
    splits = ["gallery"] * num_gallery + ["train"] * num_train
    table = pa.table({"split": splits, "domain": ["target"] * len(splits)})
    return Images(table, "store")


@pytest.mark.parametrize(
    ("mode", "room", "kept"),
    [("auto", 8, 8), ("auto", 7, 3), ("auto", 2, 0), ("jpeg", 99, 0), ("decoded", 0, 8)],
)
def test_kept_images__training_first_and_within_the_room(monkeypatch, mode, room, kept):
    decoded = []
    task = SimpleNamespace(remote=lambda table, rows, size: decoded.extend(rows.tolist()))
    monkeypatch.setattr(
        "pipelines.images.pixels._decode_block", SimpleNamespace(options=lambda **_: task)
    )
    config = Config.model_validate(
        {"input": {"height": 32, "width": 16}, "mixed_precision": False, "ray": {"images": mode}}
    )
    resources = SimpleNamespace(node_store_bytes=int(room * BYTES / STORE_SHARE) + 1)
    said = []
    source = Pixels(config, resources, said.append).source(images(3, 5))
    assert len(decoded) == kept == (source.places_N >= 0).sum()
    assert source.keeps(np.array([5, 6, 7])) == (kept >= 3)  # the training rows
    assert decoded[:3] == [5, 6, 7][: min(kept, 3)]
    assert f"{kept} of 8 images kept decoded" in said[0]


@pytest.mark.parametrize(
    ("mode", "others", "sizes", "kept"),
    [
        ("auto", 0, [20, 5], [True, True]),  # a quarter of 100 in all
        ("auto", 0, [20, 6], [True, False]),
        ("auto", 0, [26, 25], [False, True]),
        ("auto", 40, [10, 5], [True, True]),  # of 60
        ("auto", 40, [10, 6], [True, False]),
        ("device", 40, [60, 30], [True, True]),
        ("decoded", 0, [1, 1], [False, False]),
    ],
)
def test_pixels_on_the_device__a_quarter_of_its_free_memory_for_all_sets(
    mode, others, sizes, kept, monkeypatch
):
    """Memory is counted in blocks: 100 of them in all, `others` held by other processes."""
    held = others
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda _: ((100 - held) * BLOCK * BYTES, 100 * BLOCK * BYTES)
    )
    monkeypatch.setattr(ray, "get", lambda blocks: blocks)
    config = Config.model_validate({"ray": {"images": mode}})
    worker = SimpleNamespace(device=torch.device("cuda"), kept={"leaving": False})
    with FakeTensorMode():
        for number, size in enumerate(sizes):
            blocks = tuple([np.zeros((BLOCK, 32, 16, 3), np.uint8)] * size)
            source = ImageSource(number, blocks, np.arange(BLOCK * size))
            reader = pixel_reader(worker, source, config)
            assert reader.on_device == kept[number]
            assert pixel_reader(worker, source, config) is reader
            held += size * kept[number]


def test_parts_of_a_batch__hold_each_image_once_and_both_domains():
    pixels = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1).expand(10, 2, 2, 3)
    batch = FedBatch(7, pixels, np.arange(6), np.arange(100, 104))
    parts = [batch.part(at, 2) for at in range(2)]
    for part in parts:
        assert (part.step, len(part.source_rows), len(part.target_rows)) == (7, 3, 2)
        rows = np.concatenate([part.source_rows, part.target_rows - 100 + 6])
        assert part.images_BHWC[:, 0, 0, 0].tolist() == rows.tolist()
    assert np.array_equal(np.concatenate([p.source_rows for p in parts]), np.arange(6))
    assert batch.part(0, 1) is batch


def test_ahead__keeps_order_passes_errors_on_and_stops_when_unwanted():
    made = []

    def numbers(fails_at):
        for number in range(1000):
            if number == fails_at:
                raise ValueError("broken image")
            made.append(number)
            yield number

    assert list(ahead(iter(range(50)), 2)) == list(range(50))
    with pytest.raises(ValueError, match="broken image"):
        list(ahead(numbers(5), 2))
    made.clear()
    some = ahead(numbers(-1), 2)
    assert next(some) == 0
    some.close()
    assert len(made) <= 5
