"""Checkpoints come back whole or not at all, and no file makes us run its code."""

import errno
import hashlib
import json
import os
import random
from pathlib import Path

import pytest
import safetensors.torch
import torch

from daal import checkpoint
from daal.checkpoint import load, load_optimizer, save
from daal.errors import CheckpointError
from daal.nn.backbones.torchvision import load_resnet_weights

METADATA = {"iteration": 2, "step": 17, "note": "é", "rates": [0.1, 1e-300], "none": None}
FILES = ("weights.safetensors", "optimizer.safetensors", "checkpoint.json")


def some_tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, 2, 2, generator=generator)
    return {
        "layer.weight": weight.to(memory_format=torch.channels_last),
        "layer.transposed": torch.randn(5, 3, generator=generator).T,
        "layer.half": torch.randn(7, generator=generator).bfloat16(),
        "layer.special": torch.tensor([float("nan"), float("inf"), -0.0]),
        "count": torch.tensor(2**40),
        "empty": torch.zeros(0, 3),
        "tied": weight,
    }


OPTIMIZER = {"a.momentum_buffer": torch.ones(3)}


def bits(tensors):
    return {name: (t.dtype, t.shape, t.contiguous().flatten().view(torch.uint8).tolist())
            for name, t in tensors.items()}  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    directory = tmp_path / "run" / "checkpoint"
    save(directory, some_tensors(), METADATA, optimizer=OPTIMIZER)
    return directory


def test_comes_back_bit_for_bit(saved):
    tensors, metadata = load(saved)
    assert bits(tensors) == bits(some_tensors())
    assert metadata == METADATA
    assert bits(load_optimizer(saved)) == bits(OPTIMIZER)
    assert sorted(os.listdir(saved)) == sorted(FILES)
    assert os.listdir(saved.parent) == ["checkpoint"]


def test_equal_input_gives_equal_bytes(saved, tmp_path):
    save(tmp_path / "again", some_tensors(), METADATA, optimizer=OPTIMIZER)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_a_writer_that_fails__leaves_nothing(saved, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"can't be saved .*not empty.* bytes"):
        save(saved, some_tensors(1), {})
    assert load(saved)[1] == METADATA

    def fail(path, payload):
        if path.name == "checkpoint.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, payload)

    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(CheckpointError, match=r"No space left.*make room"):
        save(saved.parent / "other", some_tensors(1), {})
    assert os.listdir(saved.parent) == ["checkpoint"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_cut_off_or_changed(saved, name):
    whole, draw = (saved / name).read_bytes(), random.Random(0)
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} doesn't exist"):
        load(saved)
    for length in {0, 1, len(whole) - 1, *draw.sample(range(len(whole)), 20)}:
        (saved / name).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=name):
            load(saved)
    for position in draw.sample(range(len(whole)), min(len(whole), 40)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << draw.randrange(8)
        (saved / name).write_bytes(damaged)
        try:
            tensors, metadata = load(saved)
        except CheckpointError as error:
            assert name in str(error)
        else:  # white space between the words of checkpoint.json
            assert name == "checkpoint.json" and whole[position : position + 1].isspace()
            assert metadata == METADATA and bits(tensors) == bits(some_tensors())


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"sha256": 1}', "[" * 100_000, "\udcff"])
def test_strange_manifest(saved, text):
    (saved / "checkpoint.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"checkpoint\.json is damaged"):
        load(saved)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"files": {"weights.safetensors": {}, "../secret": {}}}, r"checkpoint\.json is damaged"),
    ],
)
def test_a_manifest_that_is_consistent_in_itself(saved, changes, said):
    """As an attacker or a later release would write it."""
    manifest = json.loads((saved / "checkpoint.json").read_text()) | changes
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(checkpoint._canonical(manifest)).hexdigest()
    (saved / "checkpoint.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=said):
        load(saved)


def resnet_state():
    return {
        "conv1.weight": torch.randn(2, 3, 1, 1).half(),
        "bn1.running_mean": torch.randn(2).half(),
        "bn1.num_batches_tracked": torch.tensor(3),
        "layer1.0.conv3.weight": torch.randn(2, 2, 1, 1).half(),
        "layer4.2.downsample.1.bias": torch.randn(2).half(),
        "fc.weight": torch.randn(4, 2).half(),
        "fc.bias": torch.randn(4).half(),
    }


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.pt"])
def test_backbone_weights(tmp_path, name):
    state = resnet_state()
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(state, tmp_path / name)
    else:
        torch.save(state, tmp_path / name)
    loaded = load_resnet_weights(tmp_path / name)
    assert loaded.keys() == {key for key in state if not key.startswith("fc.")}
    for key, tensor in loaded.items():
        assert tensor.equal(state[key].float() if state[key].is_floating_point() else state[key])
        assert tensor.dtype in (torch.float32, torch.int64)
