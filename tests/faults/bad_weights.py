"""Weights files and checkpoints that don't fit, are damaged, or would run code."""

import json
import os
import pickle
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from bad_input import Case, market, validate, write
from torch import Tensor

from daal import checkpoint
from daal.config import Config


@cache
def backbone(name: str = "resnet18") -> dict[str, Tensor]:
    """A ResNet's tensors under torchvision's names, in half precision to be small."""
    torch.manual_seed(0)
    tensors = getattr(torchvision.models, name)(weights=None).state_dict()
    return {k: t.half() if t.is_floating_point() else t for k, t in tensors.items()}


def tensors(data: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save(data)


def pth(value: Any, legacy: bool = False) -> bytes:
    torch.save(value, "x.tmp", _use_new_zipfile_serialization=not legacy)
    data = Path("x.tmp").read_bytes()
    os.remove("x.tmp")
    return data


class MakesAFolder:
    """What a hostile pickle does when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made",)


def weights(
    name: str,
    file: str,
    data: bytes | Callable[[], bytes],
    *says: str,
    settings: tuple[str, ...] = (),
) -> Case:
    def make() -> list[str]:
        market("source")
        market("target")
        write(file, data if isinstance(data, bytes) else data())
        return validate(f"network.weights={file}", *settings)

    return Case("Weights", name, make, 4, (file, *says))


def changed(**tensors_by_name: Tensor | None) -> dict[str, Tensor]:
    """A ResNet-18 but for some tensors (`__` for a dot); None takes one away."""
    state = dict(backbone())
    for name, tensor in tensors_by_name.items():
        if tensor is None:
            del state[name.replace("__", ".")]
        else:
            state[name.replace("__", ".")] = tensor
    return state


def small() -> dict[str, Tensor]:
    return {"conv1.weight": torch.ones(64, 3, 7, 7)}


def header(entries: object, size: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + bytes(64)


def entry(**facts: Any) -> dict[str, Any]:
    return {"conv1.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | facts}


def sparse() -> bytes:
    return pth({"conv1.weight": torch.eye(4).to_sparse()})


SAFE = [
    ("empty file", b"", "isn't a whole safetensors file"),
    ("a pickle", pickle.dumps(MakesAFolder()), "isn't a whole safetensors file"),
    ("offsets beyond the file", header(entry(data_offsets=[0, 1 << 40], shape=[1 << 38])),
     "isn't a whole safetensors file"),
    ("offsets that overlap", header(entry() | {"bn1.bias": {"dtype": "F32", "shape": [4],
     "data_offsets": [8, 24]}}), "isn't a whole safetensors file"),
    ("another network's names", tensors({"encoder.weight": torch.ones(3)}),
     "a tensor named 'encoder.weight', which no torchvision ResNet has"),
    ("names with a prefix", tensors({f"module.{k}": t for k, t in small().items()}),
     "a tensor named 'module.conv1.weight'"),
]  # fmt: skip

PICKLED: list[tuple[str, bytes | Callable[[], bytes], str]] = [
    ("empty file", b"", "was refused because it is damaged"),
    ("a pickle that makes a folder", pickle.dumps(MakesAFolder()), "or holds more than tensors"),
    ("torch's file of such a pickle", partial(pth, {"a": MakesAFolder()}),
     "or holds more than tensors"),
    ("a whole module", lambda: pth(torch.nn.Linear(2, 2)), "or holds more than tensors"),
    ("a state_dict inside another", lambda: pth({"state_dict": small(), "epoch": 3}),
     "isn't a flat dictionary of tensors"),
    ("a sparse tensor", sparse, "isn't a flat dictionary of tensors"),
    ("cut off in the middle", lambda: pth(small())[:20_000], "was refused because it is damaged"),
]  # fmt: skip


def truncated() -> list[Case]:
    whole = tensors(small())
    return [
        weights(f".safetensors: cut off at byte {at:,}", "w.safetensors", whole[:at],
                "isn't a whole safetensors file")
        for at in (5, 1000, len(whole) - 1)
    ]  # fmt: skip


def whole_networks() -> list[Case]:
    nan = torch.full((64,), float("nan"))
    return [
        weights("ResNet-18 for a ResNet-34", "w.pth", lambda: pth(backbone()),
                "does not hold a resnet34: layer1.2.conv1.weight is missing",
                settings=("network.backbone=resnet34",)),
        weights("ResNet-18 with a NaN", "w.safetensors",
                lambda: tensors(changed(bn1__weight=nan)),
                "has values in bn1.weight that aren't finite"),
        weights("ResNet-18 with IBN layers, not asked for", "w.safetensors",
                lambda: tensors(changed(layer1__0__bn1__IN__weight=torch.ones(32))),
                "holds a ResNet with IBN layers; set network.ibn=a"),
    ]  # fmt: skip


def no_files() -> list[Case]:
    def one(name: str, file: str, prepare: Callable[[], object], reason: str) -> Case:
        def make() -> list[str]:
            market("source")
            market("target")
            prepare()
            return validate(f"network.weights={file}")

        return Case("Weights", name, make, 4, (file, reason))

    return [
        one("absent", "gone.pth", lambda: None, "doesn't exist"),
        one("folder", "weights", lambda: os.mkdir("weights"), "isn't a file"),
        one("pipe", "w.pth", lambda: os.mkfifo("w.pth"), "isn't a file"),
    ]  # fmt: skip


# Checkpoints, which `daal extract` is given


def saved(metadata: dict[str, Any] | None = None) -> None:
    kept = {"config": Config().model_dump(mode="json")} if metadata is None else metadata
    checkpoint.save(Path("checkpoint"), {"a": torch.ones(100)}, kept)


def extract(
    name: str,
    spoil: Callable[[], object],
    *says: str,
    code: int = 4,
    settings: tuple[str, ...] = ("--layout", "market1501"),
) -> Case:
    def make() -> list[str]:
        market("target")
        spoil()
        return ["extract", "checkpoint", "target", *settings]

    return Case("Checkpoints", name, make, code, says)


def after_saving(change: Callable[[Path], object], file: str) -> Callable[[], None]:
    def spoil() -> None:
        saved()
        change(Path("checkpoint", file))

    return spoil


def replaced(old: str, new: str) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def with_setting(section: str, **changes: Any) -> Callable[[], None]:
    config = Config().model_dump(mode="json")
    return lambda: saved({"config": config | {section: config[section] | changes}})


WEIGHTS, MANIFEST = "weights.safetensors", "checkpoint.json"


def checkpoints() -> list[Case]:
    cut: Callable[[Path], object] = lambda path: os.truncate(path, 50)  # noqa: E731
    return [
        extract("absent", lambda: None, "checkpoint/checkpoint.json doesn't exist"),
        extract("weights cut off", after_saving(cut, WEIGHTS),
                "checkpoint/weights.safetensors is damaged: its SHA-256"),
        extract("weights with a bit flipped", after_saving(flipped, WEIGHTS),
                "weights.safetensors is damaged: its SHA-256"),
        extract("manifest cut off", after_saving(cut, MANIFEST), "checkpoint.json is damaged"),
        extract("manifest changed", after_saving(replaced('"seed": 0', '"seed": 1'), MANIFEST),
                "checkpoint.json is damaged"),
        extract("manifest nested too deeply",
                after_saving(lambda p: p.write_text("[" * 100_000), MANIFEST),
                "checkpoint.json is damaged"),
        extract("no configuration", lambda: saved({}), "checkpoint is not a checkpoint of a run"),
        extract("configuration of a newer daal", with_setting("network", sparkle=1),
                '"network.sparkle" is not a known key', code=2),
        extract("tensors of another network", saved,
                "checkpoint: the checkpoint does not fit this network"),
        extract("images of another layout", saved, "target/train is missing", code=3,
                settings=("--layout", "folder")),
    ]  # fmt: skip


CASES = [
    *(weights(f".safetensors: {name}", "w.safetensors", data, why) for name, data, why in SAFE),
    *(weights(f".pth: {name}", "w.pth", data, why) for name, data, why in PICKLED),
    *truncated(),
    *whole_networks(),
    *no_files(),
    *checkpoints(),
]
