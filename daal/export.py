"""A trained model as one file for other programs, kept only if it computes what the model does.

    safetensors   weights, and in the header the configuration: for `read_safetensors`
    onnx          for ONNX Runtime and its like
    torch         a torch.export program (.pt2): needs torch and nothing of daal

All take uint8 RGB images (B, 3, H, W), 0-255, of the network's input size and any B; normalisation
and flip test are inside (`daal.trained_model`). They compute in float32, where `daal extract` uses
bf16 on devices that have it, if mixed_precision is true.

A model is made, read back and compared with the original in memory; then it is written aside and
renamed. torch.export.load can unpickle, so it only gets bytes that this process has just made, and
never a file's.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from daal.config import MODEL, marked
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
    make = {"safetensors": safetensors_file, "onnx": onnx_file, "torch": torch_program}[format]
    try:
        with _quiet():
            data, run = make(model)
            largest = largest_difference(model, run)
    except Exception as error:  # exporters and runtimes raise nearly any type
        raise CheckpointError(
            f"{out} was not written: the model can't be made a file of --format {format} "
            f"({first_line(error)}); choose another --format."
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


def facts(model: TrainedModel) -> dict[str, str]:
    """What a file says of its model: configuration, input and normalisation, as JSON texts.

    Not where its run lay, nor which images and weights it began with.
    """
    config = model.config.model_dump(mode="json", include=marked(MODEL))
    config["network"]["weights"] = "none"
    size = model.config.input
    return {
        "daal_model": FORMAT_VERSION,
        "config": json.dumps(config),
        "input": json.dumps(["B", 3, size.height, size.width]),
        "input_values": "uint8 RGB, 0-255; normalised by (x / 255 - mean) / std",
        "mean": json.dumps(model.network.statistics.mean_C),
        "std": json.dumps(model.network.statistics.std_C),
    }


# ---- Formats: each gives the file's bytes, and a function that runs them --------------------


def safetensors_file(model: TrainedModel) -> tuple[bytes, Run]:
    """Weights by their names in DaalNetwork, and `facts` in the header."""
    tensors = {name: t.contiguous() for name, t in model.network.state_dict().items()}
    data = bytes(safetensors.torch.save(tensors, facts(model)))
    return data, model_of(data)


def model_of(data: bytes) -> TrainedModel:
    """The model in the bytes of a safetensors file. Raises CheckpointError if it has none."""
    try:
        tensors = safetensors.torch.load(data)
        size = int.from_bytes(data[:8], "little")  # of the header, which the line above has checked
        metadata: dict[str, str] = json.loads(data[8 : 8 + size])["__metadata__"]
        version, config = metadata["daal_model"], json.loads(metadata["config"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            "that is no model that daal export --format safetensors wrote; give one."
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"the model has format version {version}, and this program reads {FORMAT_VERSION}; use "
            "the release of daal that wrote it."
        )
    return TrainedModel(check_config(config, kept=True), tensors)


def read_safetensors(path: Path | str) -> TrainedModel:
    """The model of a file that `daal export --format safetensors` wrote.

    Raises CheckpointError if the file can't be read or isn't such a file.
    """
    try:
        return model_of(Path(path).read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be read ({error.strerror}); check the path and its permissions."
        ) from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _program(model: TrainedModel) -> torch.export.ExportedProgram:
    program = torch.export.export(
        model, (_random_images(model, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # names this machine's folders
    return program


def torch_program(model: TrainedModel) -> tuple[bytes, Run]:
    buffer = io.BytesIO()
    torch.export.save(_program(model), buffer, extra_files=facts(model))
    data = buffer.getvalue()
    run: Run = torch.export.load(io.BytesIO(data)).module()
    return data, run


def onnx_file(model: TrainedModel) -> tuple[bytes, Run]:
    import onnxruntime

    exported = torch.onnx.export(
        _program(model), dynamo=True, verbose=False, input_names=["images"],
        output_names=["features"],
    )  # fmt: skip
    assert exported is not None
    proto = exported.model_proto
    for key, value in facts(model).items():
        proto.metadata_props.add(key=key, value=value)
    data = bytes(proto.SerializeToString())
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


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

USAGE = {
    "safetensors": """\
import numpy as np; import torch; from PIL import Image; from daal.export import read_safetensors
images = torch.tensor(PIXELS)
features = read_safetensors(FILE)(images)""",
    "onnx": """\
import numpy as np; import onnxruntime; from PIL import Image
images = PIXELS
features = onnxruntime.InferenceSession(FILE).run(None, {"images": images})[0]""",
    "torch": """\
import numpy as np; import torch; from PIL import Image
images = torch.tensor(PIXELS)
features = torch.export.load(FILE).module()(images)  # runs code: only your own""",
}


def usage(model: TrainedModel, format: str, out: Path) -> str:
    """Three lines of Python that compute a feature with the file."""
    size = model.config.input
    pixels = (
        f'np.asarray(Image.open("person.jpg").convert("RGB").resize(({size.width}, {size.height}), '
        "Image.Resampling.BILINEAR)).transpose(2, 0, 1)[None]"
    )
    return USAGE[format].replace("PIXELS", pixels).replace("FILE", json.dumps(str(out)))
