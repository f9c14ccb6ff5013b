"""Checkpoints in a local folder: whole, or refused. Nothing is ever unpickled.

A checkpoint is a folder of

    weights.safetensors     tensors by name
    optimizer.safetensors   the optimizer's state, if it was saved
    checkpoint.json         metadata, format version, size and SHA-256 of the files and of itself

`save` writes a hidden folder beside it and renames that, so that a writer which is killed leaves no
folder of the checkpoint's name. `load` compares hashes, so that what a disk has lost or changed
isn't used.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from daal.errors import CheckpointError

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
MANIFEST = "checkpoint.json"
FORMAT_VERSION = 1

_REMEDY = "delete the folder and go back to an earlier checkpoint"


def save(
    directory: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    optimizer: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint to `directory`, which must not exist, or be empty.

    `tensors` and `optimizer` are of any shape, dtype and device; `metadata` is what JSON can
    hold. Equal input gives equal bytes.

    Raises CheckpointError if the disk is full or the folder can't be written, and TypeError or
    ValueError, before anything is written, for metadata that JSON can't hold (NaN included).
    """
    payloads = {WEIGHTS: _packed(tensors)}
    if optimizer is not None:
        payloads[OPTIMIZER] = _packed(optimizer)
    payloads[MANIFEST] = _manifest(payloads, metadata)

    directory = directory.absolute()
    aside = directory.with_name(f".{directory.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        for name, payload in payloads.items():
            (aside / name).write_bytes(payload)
        aside.rename(directory)
    except OSError as error:
        need = sum(len(payload) for payload in payloads.values())
        raise CheckpointError(
            f"checkpoint {directory} can't be saved ({error.strerror or error}; {need:,} bytes); "
            "make room, or check the path and its permissions"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load(
    directory: Path, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a checkpoint, after the hashes of all its files were compared.

    Raises CheckpointError, naming the file, if anything is missing or damaged.
    """
    payloads, metadata = _read(directory)
    return unpacked(payloads[WEIGHTS], directory / WEIGHTS, device), metadata


def load_optimizer(directory: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The optimizer's tensors of a checkpoint, for `restore_optimizer`; checks as `load` does.

    Raises CheckpointError, also where the checkpoint was saved without an optimizer.
    """
    payloads, _ = _read(directory)
    path = directory / OPTIMIZER
    if OPTIMIZER not in payloads:
        raise CheckpointError(
            f"{path} doesn't exist: this checkpoint was saved for inference; resume from one "
            "that was saved during training"
        )
    return unpacked(payloads[OPTIMIZER], path, device)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, Tensor]]
) -> dict[str, Tensor]:
    """The state of an optimizer as "PARAMETER.KIND" -> tensor, not copied.

    Parameters without state (frozen ones, or before the first step) are left out. Learning rates
    and other settings aren't kept: they belong to the configuration and the step.
    """
    return {
        f"{name}.{kind}": value
        for name, parameter in named_parameters
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back what `optimizer_tensors` gave, so that training resumes to the same bits.

    State that the optimizer already has is dropped. `named_parameters` must be those of the
    optimizer, under the names they were saved with. Kernels must be fused, or on the CPU, as those
    of `daal.optimizer` are: others count steps on the CPU.

    Raises CheckpointError, with the optimizer left as it was, if a name or a shape doesn't fit.
    """
    own = {p for group in optimizer.param_groups for p in group["params"]}
    parameters = {name: p for name, p in named_parameters if p in own}
    state: dict[Tensor, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition(".")
        parameter = parameters.get(name)
        # A copy in the memory layout that the optimizer would have made.
        if parameter is not None and tensor.shape == parameter.shape:
            copy = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
        elif parameter is not None and kind == "step" and tensor.ndim == 0:
            copy = tensor.clone().to(parameter.device)
        else:
            raise CheckpointError(
                f"optimizer state {key!r} of shape {tuple(tensor.shape)} fits no parameter of this "
                f"{type(optimizer).__name__}; resume with the network and optimizer that the "
                "checkpoint was made with"
            )
        state.setdefault(parameter, {})[kind] = copy
    optimizer.state.clear()
    optimizer.state.update(state)


def unpacked(payload: bytes, path: Path, device: torch.device | str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, `path`, whose bytes are given."""
    try:
        tensors = safetensors.torch.load(payload)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} isn't a whole safetensors file ({error}); get it again from where it came"
        ) from error
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    # Tied weights are written twice, as the format has no sharing.
    return safetensors.torch.save(
        {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
    )


def _manifest(payloads: Mapping[str, bytes], metadata: Mapping[str, Any]) -> bytes:
    files = {
        name: {"size": len(payload), "sha256": _sha256(payload)}
        for name, payload in payloads.items()
    }
    body = {"format_version": FORMAT_VERSION, "files": files, "metadata": dict(metadata)}
    return _canonical({**body, "sha256": _sha256(_canonical(body))})


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode()


def _sha256(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def _read(directory: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """All files of a checkpoint, verified, and its metadata."""
    path = directory / MANIFEST
    text = _read_file(path)
    damaged = CheckpointError(f"{path} is damaged: it isn't the text that was written; {_REMEDY}")
    try:
        manifest = json.loads(text)
        digest = manifest.pop("sha256")
        if _sha256(_canonical(manifest)) != digest:
            raise damaged
        version, files = manifest["format_version"], manifest["files"]
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format version {version}, and this program reads {FORMAT_VERSION}; "
                "use the release of daal that wrote it"
            )
        # Only these names are ever opened, whatever a manifest says.
        if set(files) not in ({WEIGHTS}, {WEIGHTS, OPTIMIZER}):
            raise damaged
        digests = {name: files[name]["sha256"] for name in files}
        metadata = manifest["metadata"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged from error
    payloads = {name: _read_file(directory / name) for name in files}
    for name, payload in payloads.items():
        if _sha256(payload) != digests[name]:
            raise CheckpointError(
                f"{directory / name} is damaged: its SHA-256 is not the recorded one; {_REMEDY}"
            )
    return payloads, metadata


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} doesn't exist, so there is no whole checkpoint here; check the path, or "
            "go back to an earlier checkpoint"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be read ({error.strerror}); check the disk and the permissions"
        ) from error
