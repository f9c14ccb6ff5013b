"""Weights files and checkpoints that don't fit, are damaged, or would run code."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from bad_input import VALIDATE, Case, both_sets, case, market, write

from daal import checkpoint
from daal.config import Config

SMALL = {"conv1.weight": torch.ones(64, 3, 7, 7)}


class MakesAFolder:
    """What a hostile pickle does when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made",)


def pth(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def safe(tensors: dict[str, torch.Tensor]) -> bytes:
    return safetensors.torch.save(tensors)


def beyond_its_end() -> bytes:
    entry = {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}
    header = json.dumps({"conv1.weight": entry}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(64)


def with_nan() -> bytes:
    torch.manual_seed(0)
    tensors = torchvision.models.resnet18(weights=None).state_dict()
    return safe(tensors | {"bn1.weight": torch.full((64,), float("nan"))})


WEIGHTS: list[tuple[str, Callable[[], bytes], str]] = [
    # file, bytes, what must be said of it
    ("cut.safetensors", lambda: safe(SMALL)[:-1], "isn't a whole safetensors file"),
    ("beyond.safetensors", beyond_its_end, "isn't a whole safetensors file"),
    ("pickle.safetensors", lambda: pth(SMALL), "isn't a whole safetensors file"),
    ("prefixed.safetensors", lambda: safe({f"module.{n}": t for n, t in SMALL.items()}),
     "a tensor named 'module.conv1.weight'"),
    ("instance_norm.safetensors", lambda: safe({"layer1.0.bn1.IN.weight": torch.ones(32), **SMALL}),
     "holds a ResNet with IBN layers; set network.ibn=a"),
    ("nan.safetensors", with_nan, "has values in bn1.weight that aren't finite"),
    ("folder_maker.pth", lambda: pth({"a": MakesAFolder()}), "or holds more than tensors"),
    ("cut.pth", lambda: pth(SMALL)[:20_000], "was refused because it is damaged"),
    ("nested.pth", lambda: pth({"state_dict": SMALL, "epoch": 3}),
     "isn't a flat dictionary of tensors"),
    ("sparse.pth", lambda: pth({"conv1.weight": torch.eye(4).to_sparse()}),
     "isn't a flat dictionary of tensors"),
    ("small.pth", lambda: pth(SMALL), "does not hold a resnet18: bn1.weight is missing"),
]  # fmt: skip

NO_FILES: list[tuple[str, str, Callable[[], object], str]] = [
    # name, file, what makes it, what must be said of it
    ("absent", "gone.pth", lambda: None, "doesn't exist"),
    ("pipe", "w.pth", lambda: os.mkfifo("w.pth"), "isn't a file"),
]


def weights(name: str, file: str, make: Callable[[], object], says: str) -> Case:
    def world() -> None:
        both_sets()
        make()

    return case("Weights", name, world, f"{VALIDATE} network.weights={file}", 4, file, says)


# Checkpoints, which `daal extract` is given


def saved(metadata: dict[str, Any] | None = None) -> None:
    shutil.rmtree("checkpoint", ignore_errors=True)
    kept = {"config": Config().model_dump(mode="json")} if metadata is None else metadata
    checkpoint.save(Path("checkpoint"), {"a": torch.ones(100)}, kept)


def cut(name: str) -> None:
    os.truncate(f"checkpoint/{name}", 50)


def flip_a_bit(name: str) -> None:
    path = Path("checkpoint", name)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def change_seed() -> None:
    path = Path("checkpoint/checkpoint.json")
    text = path.read_text()
    path.write_text(text.replace('"seed": 0', '"seed": 1'))
    assert path.read_text() != text


def with_new_setting() -> None:
    config = Config().model_dump(mode="json")
    saved({"config": config | {"network": config["network"] | {"sparkle": 1}}})


CHECKPOINTS: list[tuple[str, Callable[[], object], int, str]] = [
    # name, what is done to a checkpoint, exit code, what must be said
    ("weights cut off", lambda: cut("weights.safetensors"), 4,
     "checkpoint/weights.safetensors has 50 bytes where"),
    ("weights with a bit flipped", lambda: flip_a_bit("weights.safetensors"), 4,
     "weights.safetensors is damaged: its SHA-256"),
    ("manifest cut off", lambda: cut("checkpoint.json"), 4, "checkpoint.json is damaged"),
    ("manifest changed", change_seed, 4, "checkpoint.json is damaged"),
    ("manifest nested too deeply", lambda: write("checkpoint/checkpoint.json", "[" * 100_000), 4,
     "checkpoint.json is damaged"),
    ("no configuration", lambda: saved({}), 4, "checkpoint is not a checkpoint of a run"),
    ("configuration of a newer daal", with_new_setting, 2, '"network.sparkle" is not a known key'),
    ("tensors of another network", lambda: None, 4,
     "checkpoint: the checkpoint does not fit this network"),
]  # fmt: skip


def of_checkpoint(name: str, spoil: Callable[[], object], code: int, says: str) -> Case:
    def make() -> None:
        market("target")
        saved()
        spoil()

    command = "extract checkpoint target --layout market1501"
    return case("Checkpoints", name, make, command, code, says)


CASES = [
    *(weights(file, file, lambda file=file, data=data: write(file, data()), says)
      for file, data, says in WEIGHTS),
    *(weights(*row) for row in NO_FILES),
    *(of_checkpoint(*row) for row in CHECKPOINTS),
]  # fmt: skip
