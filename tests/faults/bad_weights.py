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
from bad_input import VALIDATE, Case, both_sets, case, market, nothing, write
from payload import Payload

from daal import checkpoint
from daal.config import Config

SMALL = {"conv1.weight": torch.ones(64, 3, 7, 7)}


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


WEIGHTS: list[tuple[str, Callable[[], bytes]]] = [
    ("cut.safetensors", lambda: safe(SMALL)[:-1]),
    ("beyond_its_end.safetensors", beyond_its_end),
    ("pickle.safetensors", lambda: pth(SMALL)),
    ("prefixed.safetensors", lambda: safe({f"module.{n}": t for n, t in SMALL.items()})),
    ("instance_norm.safetensors",
     lambda: safe({**SMALL, "layer1.0.bn1.IN.weight": torch.ones(32)})),
    ("nan.safetensors", with_nan),
    ("folder_maker.pth", lambda: pth({"a": Payload("made")})),
    ("cut.pth", lambda: pth(SMALL)[:20_000]),
    ("nested.pth", lambda: pth({"state_dict": SMALL, "epoch": 3})),
    ("sparse.pth", lambda: pth({"conv1.weight": torch.eye(4).to_sparse()})),
    ("small.pth", lambda: pth(SMALL)),
]  # fmt: skip


def weights(name: str, make: Callable[[], object]) -> Case:
    def world() -> None:
        both_sets()
        make()

    return case("Weights", name, world, f"{VALIDATE} network.weights={name}", 4)


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


CHECKPOINTS: list[tuple[str, Callable[[], object], int]] = [
    ("weights cut off", lambda: cut("weights.safetensors"), 4),
    ("weights with a bit flipped", lambda: flip_a_bit("weights.safetensors"), 4),
    ("manifest cut off", lambda: cut("checkpoint.json"), 4),
    ("manifest changed", change_seed, 4),
    ("manifest nested too deeply", lambda: write("checkpoint/checkpoint.json", "[" * 100_000), 4),
    ("no configuration", lambda: saved({}), 4),
    ("configuration of a newer daal", with_new_setting, 2),
    ("tensors of another network", nothing, 4),
]


def of_checkpoint(name: str, spoil: Callable[[], object], code: int) -> Case:
    def make() -> None:
        market("target")
        saved()
        spoil()

    command = "extract checkpoint target --layout market1501"
    return case("Checkpoints", name, make, command, code)


CASES = [
    *(weights(name, lambda name=name, data=data: write(name, data())) for name, data in WEIGHTS),
    weights("absent.pth", nothing),
    weights("pipe.pth", lambda: os.mkfifo("pipe.pth")),
    *(of_checkpoint(*row) for row in CHECKPOINTS),
]
