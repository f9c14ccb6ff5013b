"""`daal export`: a file that computes what the checkpoint does, or none."""

import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from payload import Payload
from PIL import Image
from programs import daal
from torch.nn import functional as F

from daal import checkpoint, export
from daal.data.augment import normalise
from daal.data.images import decode
from daal.errors import CheckpointError, ConfigError
from daal.load_config import load_config
from daal.nn.network import DaalNetwork
from daal.trained_model import load_trained

PLACE = "/where/nobody/looks"
SETTINGS = [
    "input.height=64", "input.width=32", "network.backbone=resnet18", "network.weights=none",
    "network.pooling=gem", "network.neck=bnneck", "network.domain_batch_norm=true",
    f"out={PLACE}/run", f"source.root={PLACE}/source", f"target.root={PLACE}/target",
]  # fmt: skip


def saved(folder, config, seed=0):
    """A checkpoint as an adaptation leaves it: heads, domains, statistics that are not 0 and 1."""
    torch.manual_seed(seed)
    network = DaalNetwork(config.network, 7, 5, domain_head=True).train()
    with torch.no_grad():
        for _ in range(2):
            network(torch.randn(8, 3, 64, 32), 4)
        for parameter in network.attention.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    checkpoint.save(folder, network.state_dict(), {"config": config.model_dump(mode="json")})
    return folder


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = load_config(None, [*SETTINGS, "flip_test=true"])
    return saved(tmp_path_factory.mktemp("run") / "checkpoint", config)


@pytest.fixture(scope="module")
def model(folder):
    return load_trained(folder)


def images(num):
    generator = torch.Generator().manual_seed(num)
    return torch.randint(0, 256, (num, 3, 64, 32), dtype=torch.uint8, generator=generator)


@dataclass(frozen=True)
class Exported:
    file: Path
    code: int
    usage: str
    message: str


@pytest.fixture(scope="module", params=export.SUFFIXES)
def exported(folder, tmp_path_factory, request):
    """The command, once for each format; onto a file that would leave a mark if it were read."""
    where = tmp_path_factory.mktemp(request.param)
    file = where / f"model{export.SUFFIXES[request.param]}"
    file.write_bytes(pickle.dumps(Payload(where / "mark")))
    return Exported(file, *daal("export", folder, "--format", request.param, "--out", file))


@pytest.mark.parametrize("flip", [False, True])
def test_features_are_the_network_s(tmp_path, flip):
    config = load_config(None, [*SETTINGS, f"flip_test={flip}".lower()])
    folder = saved(tmp_path / "checkpoint", config)
    network = DaalNetwork(config.network)
    network.load_matching(checkpoint.load(folder)[0])
    normalised_BCHW = normalise(images(3))
    with torch.inference_mode():
        expected_BC = network.eval().extract(normalised_BCHW)
        if flip:
            expected_BC = expected_BC + network.extract(normalised_BCHW.flip(3))
            expected_BC = F.normalize(expected_BC, dim=1)
    found_BC = load_trained(folder)(images(3))
    assert torch.equal(found_BC, expected_BC)
    assert torch.allclose(found_BC.norm(dim=1), torch.ones(3), atol=1e-5)


def run_again(file):
    """The exported file, read here by what its users have."""
    if file.suffix == ".onnx":
        onnx.checker.check_model(onnx.load(file), full_check=True)
        session = onnxruntime.InferenceSession(file)
        return lambda x: torch.from_numpy(session.run(["features"], {"images": x.numpy()})[0])
    if file.suffix == ".pt2":
        return torch.export.load(file).module()
    return export.read_safetensors(file)


def test_the_file_agrees_with_the_checkpoint(exported, folder, model):
    assert exported.code == 0, exported.message
    assert "batches of 1, 2, 5 images: largest difference" in exported.message
    assert list(exported.file.parent.iterdir()) == [exported.file]

    run = run_again(exported.file)
    for size in (1, 3, 8):
        expected_BC, found_BC = model(images(size)), run(images(size))
        assert found_BC.dtype == torch.float32 and found_BC.shape == (size, 512)
        assert float((found_BC - expected_BC).abs().max()) <= 1e-4
    data = exported.file.read_bytes()
    assert b"flip_test" in data and b"0.485, 0.456, 0.406" in data  # it says what it is
    for text in (PLACE, str(Path(__file__).parents[2]), str(folder)):
        assert text.encode() not in data, "names a folder of this machine"


def test_the_lines_that_are_printed_work(exported, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (90, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save("person.jpg")
    assert len(exported.usage.splitlines()) == 3
    names = {}
    exec(exported.usage, names)
    pixels = torch.from_numpy(decode(Path("person.jpg").read_bytes(), 64, 32)).permute(2, 0, 1)
    found = torch.as_tensor(names["features"])
    assert float((found - model(pixels[None])).abs().max()) <= 1e-4


def test_one_that_computes_something_else_is_refused(model, folder, tmp_path, monkeypatch):
    out = tmp_path / "model.safetensors"
    out.write_text("of last week")
    other = load_trained(folder)
    other.network.attention.attention.last_norm.bias.data += 1e-2  # hardly
    made = export.safetensors_file(other)
    monkeypatch.setattr(export, "safetensors_file", lambda _: made)
    with pytest.raises(CheckpointError, match=r"was not written.*differ by up to .* 0.0001"):
        export.export(model, "safetensors", out)
    other.network.backbone[0].weight.data[0] = torch.nan
    with pytest.raises(CheckpointError, match="finite"):
        export.export(other, "safetensors", out)
    assert out.read_text() == "of last week" and len(list(tmp_path.iterdir())) == 1


def test_a_file_that_is_none_is_refused(model, tmp_path):
    whole, _ = export.safetensors_file(model)
    file, mark = tmp_path / "model.safetensors", tmp_path / "mark"
    for data in (whole[:-1], whole[:1000], b"", pickle.dumps(Payload(mark))):
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match=f"{file}: that is no model that daal export"):
            export.read_safetensors(file)
    with pytest.raises(CheckpointError, match="can't be read"):
        export.read_safetensors(tmp_path / "absent.safetensors")
    assert not mark.exists()


def test_without_the_packages__what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install 'daal-reid\[export\]'"):
        export.export(model, "onnx", tmp_path / "model.onnx")
