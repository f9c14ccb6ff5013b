"""A trained model as one file for other programs, kept only if it computes what the model does.

    safetensors   weights, and in the header the configuration: for `read_safetensors`
    onnx          for ONNX Runtime and its like
    torch         a torch.export program (.pt2): needs torch and nothing of daal

All take uint8 RGB images (B, 3, H, W), 0-255, of the network's input size and any B; normalisation
and flip test are inside (`daal.trained_model`). They compute in float32, where `daal extract` uses
bf16 on devices that have it, if mixed_precision is true.

A model is made, read back and compared with the original in memory; then it is written aside and
renamed. torch.export.load can unpickle, so the bytes that it gets here are those that this process
has just made, and never a file's.
"""

import hashlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from daal.config import MODEL, marked
from daal.data.augment import MEAN_C, STD_C
from daal.errors import CheckpointError, ConfigError, first_line
from daal.load_config import check_config
from daal.trained_model import TrainedModel
from daal.whole_file import check_file_to_write, write_whole

SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "torch": ".pt2"}
BATCH_SIZES = (1, 2, 5)
TOLERANCE = 1e-4  # of a coordinate of a feature of unit length
FORMAT_VERSION = "1"

Run = Callable[[Tensor], Tensor]  # images (B, 3, H, W) -> features (B, C)


class Comparison(NamedTuple):
    """An exported model beside the original: the largest difference of a coordinate of unit
    features, over batches of random images."""

    batch_sizes: tuple[int, ...]
    largest: float
    num_bytes: int


def check_export(format: str, out: Path) -> None:
    """Call before the expensive work. Raises ConfigError if the format can't be made here."""
    if format not in SUFFIXES:
        raise ConfigError(f"--format {format} is unknown; take one of {', '.join(SUFFIXES)}.")
    if out.suffix != SUFFIXES[format]:
        raise ConfigError(
            f"--out {out}: a file of --format {format} must end in {SUFFIXES[format]}."
        )
    check_file_to_write(out)
    if format == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"--format onnx needs the packages onnx, onnxscript and onnxruntime ({error}): "
                "pip install 'daal-reid[export]'."
            ) from error


def export(model: TrainedModel, format: str, out: Path) -> Comparison:
    """Write the model, on the CPU, to `out`; an old file is replaced only by one that agrees.

    Raises:
        ConfigError: see `check_export`.
        CheckpointError: the file would not compute the model's features.
        StorageError: it can't be written.
    """
    check_export(format, out)
    ways: dict[str, tuple[Callable[[TrainedModel], bytes], Callable[[bytes], Run]]] = {
        "safetensors": (as_safetensors, from_safetensors),
        "onnx": (as_onnx, run_onnx),
        "torch": (as_program, _run_program),
    }
    write, read = ways[format]
    try:
        with _quiet():
            data = write(model)
            largest = largest_difference(model, read(data))
    except Exception as error:  # exporters and runtimes raise nearly any type
        reason = first_line(error)
        raise CheckpointError(
            f"{out} was not written: the model can't be made a file of --format {format} "
            f"({reason}); choose another --format."
        ) from error
    if not largest <= TOLERANCE:  # NaN neither
        raise CheckpointError(
            f"{out} was not written: as --format {format}, the model's features differ by up to "
            f"{largest:.2g} where {TOLERANCE:g} is allowed; choose another --format, or check that "
            "the checkpoint's own features are finite."
        )
    write_whole(out, data)
    return Comparison(BATCH_SIZES, largest, len(data))


def largest_difference(model: TrainedModel, run: Run) -> float:
    """The largest difference of a coordinate of unit features, over batches of random images."""
    differences = []
    with torch.inference_mode():
        for size in BATCH_SIZES:
            images_BCHW = _random_images(model, size)
            expected_BC, found_BC = model(images_BCHW), run(images_BCHW)
            if found_BC.shape != expected_BC.shape:
                return float("inf")
            # The same factor for both: a wrong length is a difference, too.
            length_B1 = expected_BC.norm(dim=1, keepdim=True)
            differences.append(((found_BC - expected_BC) / length_B1).abs().max())
    return float(torch.stack(differences).max())  # NaN if any is


def _random_images(model: TrainedModel, size: int) -> Tensor:
    """Coarse and fine patterns: noise alone would look the same to the last layers."""
    generator = torch.Generator().manual_seed(size)
    height, width = model.config.input.height, model.config.input.width
    coarse_BCHW = F.interpolate(
        torch.rand(size, 3, 8, 4, generator=generator), (height, width), mode="bilinear"
    )
    fine_BCHW = torch.rand(size, 3, height, width, generator=generator)
    return ((0.8 * coarse_BCHW + 0.2 * fine_BCHW) * 255).round().to(torch.uint8)


# ---- safetensors ------------------------------------------------------------------------


def facts(model: TrainedModel) -> dict[str, str]:
    """What a file says of its model: configuration, input and normalisation, as JSON texts.

    Not where its run lay, and which images and weights it began with.
    """
    config = model.config.model_dump(mode="json", include=marked(MODEL))
    config["network"]["weights"] = "none"
    size = model.config.input
    return {
        "daal_model": FORMAT_VERSION,
        "config": json.dumps(config),
        "input": json.dumps(["B", 3, size.height, size.width]),
        "input_values": "uint8 RGB, 0-255; normalised by (x / 255 - mean) / std",
        "mean": json.dumps(MEAN_C),
        "std": json.dumps(STD_C),
    }


def as_safetensors(model: TrainedModel) -> bytes:
    """Weights by their names in DaalNetwork; in the header `facts`, and a hash of it all."""
    tensors = {name: t.contiguous() for name, t in model.network.state_dict().items()}
    metadata = facts(model)
    return bytes(
        safetensors.torch.save(tensors, {**metadata, "sha256": _digest(tensors, metadata)})
    )


def from_safetensors(data: bytes) -> TrainedModel:
    """The model of a file's bytes. Raises CheckpointError if they aren't as `as_safetensors` made
    them."""
    try:
        tensors = safetensors.torch.load(data)
        size = int.from_bytes(data[:8], "little")  # of the header; looked at by the line above
        metadata: dict[str, str] = json.loads(data[8 : 8 + size])["__metadata__"]
        version, digest = metadata["daal_model"], metadata.pop("sha256")
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            "that is no model that daal export --format safetensors wrote; give one."
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"the model has format version {version}, and this program reads {FORMAT_VERSION}; use "
            "the release of daal that wrote it."
        )
    if _digest(tensors, metadata) != digest:
        raise CheckpointError(
            "the model is damaged: its SHA-256 is not the recorded one; export it again."
        )
    return TrainedModel(check_config(json.loads(metadata["config"]), kept=True), tensors)


def read_safetensors(path: Path | str) -> TrainedModel:
    """The model of a file that `daal export --format safetensors` wrote.

    Raises CheckpointError if it can't be read, isn't such a file, or is damaged.
    """
    try:
        return from_safetensors(Path(path).read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be read ({error.strerror}); check the path and its permissions."
        ) from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    text = json.dumps(metadata, sort_keys=True).encode()
    return hashlib.sha256(text + safetensors.torch.save(tensors)).hexdigest()


# ---- Programs ---------------------------------------------------------------------------


def _program(model: TrainedModel) -> torch.export.ExportedProgram:
    program = torch.export.export(
        model, (_random_images(model, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # names this machine's folders
    return program


def as_program(model: TrainedModel) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_program(model), buffer, extra_files=facts(model))
    return buffer.getvalue()


def _run_program(data: bytes) -> Run:
    """Only for what `as_program` has just returned: a file could hold a pickle."""
    module: Run = torch.export.load(io.BytesIO(data)).module()
    return module


def as_onnx(model: TrainedModel) -> bytes:
    exported = torch.onnx.export(
        _program(model), dynamo=True, verbose=False, input_names=["images"],
        output_names=["features"],
    )  # fmt: skip
    assert exported is not None
    proto = exported.model_proto
    for key, value in facts(model).items():
        proto.metadata_props.add(key=key, value=value)
    return bytes(proto.SerializeToString())


def run_onnx(data: bytes) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters tell of every step, and of what they will deprecate."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ---- Usage ------------------------------------------------------------------------------


def usage(model: TrainedModel, format: str, out: Path) -> str:
    """Three lines of Python that compute a feature with the file."""
    size, file = model.config.input, json.dumps(str(out))
    pixels = (
        f'np.asarray(Image.open("person.jpg").convert("RGB").resize(({size.width}, {size.height}), '
        "Image.Resampling.BILINEAR)).transpose(2, 0, 1)[None]"
    )
    imports = "import numpy as np; from PIL import Image; "
    lines: dict[str, tuple[Any, ...]] = {
        "safetensors": (
            imports + "import torch; from daal.export import read_safetensors",
            f"images = torch.tensor({pixels})",
            f"features = read_safetensors({file})(images)",
        ),
        "onnx": (
            imports + "import onnxruntime",
            f"images = {pixels}",
            f'features = onnxruntime.InferenceSession({file}).run(None, {{"images": images}})[0]',
        ),
        "torch": (
            imports + "import torch",
            f"images = torch.tensor({pixels})",
            f"features = torch.export.load({file}).module()(images)  # runs code: only your own",
        ),
    }
    return "\n".join(lines[format])
