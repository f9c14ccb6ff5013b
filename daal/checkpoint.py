"""Checkpoints in a local folder: whole, or ignored. Nothing is ever unpickled.

A checkpoint is a folder of

    weights.safetensors     tensors by name
    optimizer.safetensors   the optimizer's state, if it was saved
    checkpoint.json         metadata, format version, size and SHA-256 of the files and of itself

`save` writes a hidden sibling folder, syncs it to the disk, and renames it: whenever the power
goes, the folder of that name is the old checkpoint or the new one. POSIX can't
swap two full folders in one step, so that an old one is renamed to `.NAME.previous` first;
should the machine stop between the two renames, `load` finds it there. One process at a time
may write a checkpoint of a given name. A reader that comes in the very moment of a replacement may
get a CheckpointError, but never a mixture.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
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

# The state of torch.optim.SGD and Adam/AdamW, by the optimizer's class name.
OPTIMIZER_STATE = {
    "SGD": ("momentum_buffer",),
    "Adam": ("exp_avg", "exp_avg_sq", "step"),
    "AdamW": ("exp_avg", "exp_avg_sq", "step"),
}


def save(
    directory: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    optimizer: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint to `directory`, in place of the one that may be there.

    `tensors` and `optimizer` are of any shape, dtype and device; `metadata` is what JSON can
    hold, NaN excepted. Equal input gives equal bytes. If anything fails, the old checkpoint
    stays as it was.

    Raises CheckpointError if the disk is full or the folder can't be written, and TypeError or
    ValueError, before anything is written, for metadata that JSON can't hold.
    """
    payloads = {WEIGHTS: _packed(tensors)}
    if optimizer is not None:
        payloads[OPTIMIZER] = _packed(optimizer)
    payloads[MANIFEST] = _manifest(payloads, metadata)

    directory = Path(directory).absolute()
    aside = directory.with_name(f"{_aside_prefix(directory)}{uuid.uuid4().hex}")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        for leftover in directory.parent.glob(f"{_aside_prefix(directory)}*"):
            shutil.rmtree(leftover, ignore_errors=True)  # of a writer that was killed
        aside.mkdir()
        for name, payload in payloads.items():
            _write_synced(aside / name, payload)
        _sync_folder(aside)
        _put_in_place(aside, directory)
    except OSError as error:
        need = sum(len(payload) for payload in payloads.values())
        raise CheckpointError(_why_not_saved(directory, error, need)) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load(
    directory: Path, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a checkpoint, after size and hash of all its files were compared.

    Raises CheckpointError, naming the file, if anything is missing or damaged.
    """
    payloads, metadata = _read(Path(directory))
    return unpacked(payloads[WEIGHTS], Path(directory) / WEIGHTS, device), metadata


def load_optimizer(directory: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The optimizer's tensors of a checkpoint, for `restore_optimizer`; checks as `load` does.

    Raises CheckpointError, also where the checkpoint was saved without an optimizer.
    """
    payloads, _ = _read(Path(directory))
    path = Path(directory) / OPTIMIZER
    if OPTIMIZER not in payloads:
        raise CheckpointError(
            f"{path} doesn't exist: this checkpoint was saved for inference; resume from one "
            "that was saved during training"
        )
    return unpacked(payloads[OPTIMIZER], path, device)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, Tensor]]
) -> dict[str, Tensor]:
    """The state of an SGD, Adam or AdamW optimizer as "PARAMETER.KIND" -> tensor, not copied.

    Parameters without state (frozen ones, or before the first step) are left out. Learning rates
    and other settings aren't kept: they belong to the configuration and the step.

    Raises ValueError for another optimizer, or one with a kind of state not listed here (amsgrad).
    """
    kinds = _state_kinds(optimizer)
    tensors = {}
    for name, parameter in named_parameters:
        for kind, value in optimizer.state.get(parameter, {}).items():
            if value is None:  # SGD without momentum
                continue
            if kind not in kinds:
                raise ValueError(f"can't save {kind!r} of {type(optimizer).__name__}")
            tensors[f"{name}.{kind}"] = value
    return tensors


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back what `optimizer_tensors` gave: training goes on as if it had never stopped.

    State that the optimizer already has is dropped. `named_parameters` must be those of the
    optimizer, under the names they were saved with.

    Raises CheckpointError, with the optimizer left as it was, if a name, a shape or a kind of
    state doesn't fit.
    """
    kinds = _state_kinds(optimizer)
    parameters = dict(named_parameters)
    settings = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    state: dict[Tensor, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition(".")
        parameter = parameters.get(name)
        if kind not in kinds or parameter is None or id(parameter) not in settings:
            raise CheckpointError(
                f"optimizer state {key!r} fits no parameter of this {type(optimizer).__name__}; "
                "resume with the network and optimizer that the checkpoint was made with"
            )
        expected = torch.Size() if kind == "step" else parameter.shape
        if tensor.shape != expected:
            raise CheckpointError(
                f"optimizer state {key!r} has shape {tuple(tensor.shape)} where "
                f"{tuple(expected)} is needed; resume with the network that the checkpoint was "
                "made with"
            )
        state.setdefault(parameter, {})[kind] = _placed(tensor, kind, parameter, settings)
    for name, parameter in parameters.items():
        missing = set(kinds) - set(state.get(parameter, kinds))
        if missing:
            raise CheckpointError(
                f"optimizer state of {name!r} lacks {', '.join(sorted(missing))}; start this "
                "iteration again from its first step"
            )
    optimizer.state.clear()
    optimizer.state.update(state)


def _state_kinds(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    try:
        return OPTIMIZER_STATE[type(optimizer).__name__]
    except KeyError:
        raise ValueError(f"can't save or restore the state of {type(optimizer).__name__}") from None


def _placed(
    tensor: Tensor, kind: str, parameter: Tensor, settings: Mapping[int, Mapping[str, Any]]
) -> Tensor:
    """A copy on the device, and in the memory layout, that the optimizer would have made."""
    if kind == "step":
        # Adam counts on the CPU unless its kernels read the count on the device.
        group = settings[id(parameter)]
        on_device = group.get("capturable") or group.get("fused")
        return tensor.clone().to(parameter.device if on_device else "cpu")
    return torch.empty_like(parameter, requires_grad=False).copy_(tensor)


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    # Tied weights are written twice, as the format has no sharing.
    return safetensors.torch.save(
        {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
    )


def unpacked(payload: bytes, path: Path, device: torch.device | str) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load(payload)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} isn't a whole safetensors file ({error}); get it again from where it came"
        ) from error
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _manifest(payloads: Mapping[str, bytes], metadata: Mapping[str, Any]) -> bytes:
    body = {
        "format_version": FORMAT_VERSION,
        "files": {
            name: {"size": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
            for name, payload in payloads.items()
        },
        "metadata": dict(metadata),
    }
    text = _canonical(body)
    if json.loads(text) != body:
        raise TypeError("checkpoint metadata must come back from JSON as it was (no tuples, "
                        "and only strings as keys)")  # fmt: skip
    return _canonical({**body, "sha256": hashlib.sha256(text).hexdigest()})


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode()


def _read(directory: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """All files of a checkpoint, verified, and its metadata."""
    previous = _previous(directory)
    if not directory.exists() and previous.exists():
        directory = previous  # a writer was stopped between its two renames
    path = directory / MANIFEST
    text = _read_file(path)
    damaged = CheckpointError(f"{path} is damaged: it isn't the text that was written; {_REMEDY}")
    try:
        manifest = json.loads(text)
        digest = manifest.pop("sha256")
        version = manifest["format_version"]
        if hashlib.sha256(_canonical(manifest)).hexdigest() != digest:
            raise damaged
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format version {version}, and this program reads {FORMAT_VERSION}; "
                "use the release of daal that wrote it"
            )
        files, metadata = manifest["files"], manifest["metadata"]
        # Only these names are ever opened, whatever a manifest says.
        if set(files) not in ({WEIGHTS}, {WEIGHTS, OPTIMIZER}):
            raise damaged
        payloads = {}
        for name, facts in files.items():
            payloads[name] = _read_file(directory / name)
            _verify(directory / name, payloads[name], facts["size"], facts["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged from error
    return payloads, metadata


_REMEDY = "delete the folder and go back to an earlier checkpoint"


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


def _verify(path: Path, payload: bytes, size: int, sha256: str) -> None:
    if len(payload) != size:
        raise CheckpointError(
            f"{path} has {len(payload)} bytes where {size} were written; {_REMEDY}"
        )
    if hashlib.sha256(payload).hexdigest() != sha256:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the recorded one; {_REMEDY}")


def _aside_prefix(directory: Path) -> str:
    return f".{directory.name}.tmp-"


def _previous(directory: Path) -> Path:
    directory = directory.absolute()
    return directory.with_name(f".{directory.name}.previous")


def _write_synced(path: Path, payload: bytes) -> None:
    with path.open("xb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(aside: Path, directory: Path) -> None:
    previous = _previous(directory)
    if directory.exists():
        shutil.rmtree(previous, ignore_errors=True)
        directory.rename(previous)
    try:
        aside.rename(directory)
    except OSError:
        if previous.exists():
            previous.rename(directory)
        raise
    _sync_folder(directory.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _why_not_saved(directory: Path, error: OSError, need: int) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = directory.parent
        free = f"{shutil.disk_usage(place).free:,}" if place.exists() else "an unknown number of"
        return (
            f"checkpoint {directory} can't be saved: it needs {need:,} bytes and {place} has "
            f"{free} bytes free; make room or move the run's out folder (the checkpoint "
            "before it is untouched)"
        )
    return (
        f"checkpoint {directory} can't be saved ({error.strerror or error}); check the path and "
        "its permissions"
    )
