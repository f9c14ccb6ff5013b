"""Checkpoints come back whole or not at all, and no file makes us run its code."""

import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from daal import checkpoint
from daal.checkpoint import (
    load,
    load_optimizer,
    save,
)
from daal.errors import CheckpointError
from daal.nn.backbone import load_backbone_weights

METADATA = {"iteration": 2, "step": 17, "note": "é", "rates": [0.1, 1e-300], "none": None}
FILES = ("weights.safetensors", "optimizer.safetensors", "checkpoint.json")


def some_tensors(seed: int = 0) -> dict[str, Tensor]:
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


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    def bits(tensor: Tensor) -> Tensor:
        return (
            tensor.detach().clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)
        )

    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and bits(one[name]).equal(bits(other[name]))
        for name in one
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    directory = tmp_path / "run" / "checkpoint"
    save(directory, some_tensors(), METADATA, optimizer={"a.momentum_buffer": torch.ones(3)})
    return directory


def test_comes_back_bit_for_bit(saved: Path) -> None:
    tensors, metadata = load(saved)
    assert same_bits(tensors, some_tensors())
    assert metadata == METADATA
    assert same_bits(load_optimizer(saved), {"a.momentum_buffer": torch.ones(3)})
    assert sorted(os.listdir(saved)) == sorted(FILES)
    assert os.listdir(saved.parent) == ["checkpoint"]


def test_equal_input_gives_equal_bytes(saved: Path, tmp_path: Path) -> None:
    save(
        tmp_path / "again", some_tensors(), METADATA, optimizer={"a.momentum_buffer": torch.ones(3)}
    )
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_a_writer_that_fails__leaves_nothing(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match=r"can't be saved .*not empty.* bytes"):
        save(saved, some_tensors(1), {})
    assert load(saved)[1] == METADATA

    def fail(path: Path, payload: bytes) -> int:
        if path.name == "checkpoint.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, payload)

    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(CheckpointError, match=r"No space left.*make room"):
        save(saved.parent / "other", some_tensors(1), {})
    assert os.listdir(saved.parent) == ["checkpoint"]


@pytest.mark.parametrize("name", FILES)
def test_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} doesn't exist"):
        load(saved)


@pytest.mark.parametrize("name", FILES)
def test_truncated_file(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    for length in {0, 1, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 20)}:
        (saved / name).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=name):
            load(saved)


@pytest.mark.parametrize("name", FILES)
def test_flipped_bit(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    generator = random.Random(1)
    for position in generator.sample(range(len(whole)), min(len(whole), 40)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << generator.randrange(8)
        (saved / name).write_bytes(damaged)
        try:
            tensors, metadata = load(saved)
        except CheckpointError as error:
            assert name in str(error)
        else:  # white space between the words of checkpoint.json
            assert name == "checkpoint.json" and whole[position : position + 1].isspace()
            assert metadata == METADATA and same_bits(tensors, some_tensors())


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"sha256": 1}', "[" * 100_000, "\udcff"])
def test_strange_manifest(saved: Path, text: str) -> None:
    (saved / "checkpoint.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"checkpoint\.json is damaged"):
        load(saved)


def rewrite_manifest(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A manifest that is consistent in itself, as an attacker or a later release would write."""
    manifest = json.loads((directory / "checkpoint.json").read_text())
    del manifest["sha256"]
    change(manifest)
    manifest["sha256"] = hashlib.sha256(checkpoint._canonical(manifest)).hexdigest()
    (directory / "checkpoint.json").write_text(json.dumps(manifest))


def test_later_format_version(saved: Path) -> None:
    rewrite_manifest(saved, lambda manifest: manifest.update(format_version=2))
    with pytest.raises(CheckpointError, match="format version 2"):
        load(saved)


def test_manifest_cannot_name_other_files(saved: Path) -> None:
    rewrite_manifest(saved, lambda manifest: manifest["files"].update({"../secret": {}}))
    with pytest.raises(CheckpointError, match=r"checkpoint\.json"):
        load(saved)


@pytest.mark.parametrize("value", [float("nan"), (1, 2), {1: 2}, object()])
def test_metadata_that_json_cannot_hold(saved: Path, value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        save(saved, {}, {"value": value})
    assert load(saved)[1] == METADATA


class Payload:
    """Pickled, it asks the reader to make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


def resnet_state() -> dict[str, Tensor]:
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
def test_backbone_weights(tmp_path: Path, name: str) -> None:
    state = resnet_state()
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(state, tmp_path / name)
    else:
        torch.save(state, tmp_path / name)
    loaded = load_backbone_weights(tmp_path / name)
    assert loaded.keys() == {key for key in state if not key.startswith("fc.")}
    for key, tensor in loaded.items():
        assert tensor.equal(state[key].float() if state[key].is_floating_point() else state[key])
        assert tensor.dtype in (torch.float32, torch.int64)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["whole", "value", "extra"])
def test_malicious_weights_are_refused_and_leave_no_mark(
    tmp_path: Path, place: str, zipped: bool
) -> None:
    mark, path = tmp_path / "mark", tmp_path / "weights.pth"
    payload = Payload(mark)
    state: object = {
        "whole": payload,
        "value": {"conv1.weight": payload},
        "extra": resnet_state() | {"z": payload},
    }[place]
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"weights\.pth was refused") as caught:
        load_backbone_weights(path)
    assert "weights_only" not in str(caught.value)
    assert not mark.exists()
    # Renamed, it fares no better.
    shutil.copy(path, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_backbone_weights(tmp_path / "weights.safetensors")
    assert not mark.exists()


def test_backbone_weights_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"

    def refused(state: object, why: str) -> None:
        torch.save(state, path)
        with pytest.raises(CheckpointError, match=why):
            load_backbone_weights(path)

    refused({"state_dict": resnet_state()}, "isn't a flat dictionary")
    refused([torch.ones(1)], "isn't a flat dictionary")
    refused(resnet_state() | {"epoch": 3}, "isn't a flat dictionary")
    refused(
        {f"module.{key}": value for key, value in resnet_state().items()}, "module.conv1.weight"
    )
    refused({}, "no conv1.weight")
    refused(nn.Linear(1, 1), "refused")
    for junk in (b"", b"PK\x03\x04", b"\x80\x02", b"<html>", os.urandom(200)):
        path.write_bytes(junk)
        with pytest.raises(CheckpointError, match="refused"):
            load_backbone_weights(path)
    with pytest.raises(CheckpointError, match="doesn't exist"):
        load_backbone_weights(tmp_path / "absent.pth")
    (tmp_path / "weights.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"type \.onnx"):
        load_backbone_weights(tmp_path / "weights.onnx")
