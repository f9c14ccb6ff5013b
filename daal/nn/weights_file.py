"""Files of weights that others made. Nothing is unpickled but tensors."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daal.checkpoint import unpacked
from daal.config import IMAGENET_WEIGHTS
from daal.errors import CheckpointError


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a file by their names, on the CPU.

    Reads .safetensors, or .pth and .pt with torch's weights-only reader, which builds tensors and
    refuses every other object. Floating-point tensors come back as float32, whatever they were
    stored in; all others as they are.

    Raises CheckpointError if the file is missing, of another type, unreadable, or holds
    anything but tensors.
    """
    path = Path(os.path.expanduser(path))
    if path.is_file() and path.suffix not in (".safetensors", ".pth", ".pt"):
        raise CheckpointError(
            f"weights file {path} has the type {path.suffix or '(none)'}, which isn't read; "
            f"convert it: daal convert {path} --out weights.safetensors"
        )
    state = read_any(path)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and _is_plain(tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(
            f"weights file {path} isn't a flat dictionary of tensors; convert it: daal convert "
            f"{path} --out weights.safetensors"
        )
    return as_float32(state)


def read_any(path: Path) -> Any:
    """What a .safetensors file, or a file of torch's of any name, holds, on the CPU.

    torch's weights-only reader builds tensors, numbers, texts, lists and dictionaries, and refuses
    every other object.

    Raises CheckpointError if the file is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        there = "isn't a file" if path.exists() else "doesn't exist"
        raise CheckpointError(
            f"weights file {path} {there}; give the path of a .safetensors or .pth file, or "
            f"set network.weights to {', '.join(IMAGENET_WEIGHTS)} or none (random weights)"
        )
    if path.suffix == ".safetensors":
        return dict(unpacked(path.read_bytes(), path, "cpu"))
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Whatever a foreign file makes the reader raise, the answer is the same: it isn't used.
        # The reader's own message advises to switch the protection off; it isn't passed on.
        raise CheckpointError(
            f"weights file {path} was refused because it is damaged or holds more than tensors; "
            "get a plain state_dict from a source you trust and save it as .safetensors"
        ) from error


def largest_state(value: Any) -> tuple[str, dict[str, Tensor]]:
    """The dictionary with most tensors in nested ones, and the keys that lead to it, each with a
    dot. Of equal ones, a teacher's, or else the first."""
    if not isinstance(value, dict):
        return "", {}
    own = {n: t.detach() for n, t in value.items() if isinstance(n, str) and _is_plain(t)}
    inner = []
    for key, part in value.items():
        where, found = largest_state(part)
        inner.append((f"{key}.{where}", found))
    return max([("", own), *inner], key=lambda each: (len(each[1]), "teacher" in each[0]))


def as_float32(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors as float32, all others as they are."""
    return {
        name: tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
        for name, tensor in state.items()
    }


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided
