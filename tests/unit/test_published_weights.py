"""`daal convert`: published checkpoints of many shapes, under the names that backbones read."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from daal.config import InputConfig, NetworkConfig
from daal.errors import CheckpointError
from daal.nn.backbone import build_backbone
from daal.nn.published_weights import read_published
from pipelines import cli

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def resnet() -> Tensors:
    """Without its classifier."""
    torch.manual_seed(0)
    state = torchvision.models.resnet18(weights=None).state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def under(prefix: str, state: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


QUEUE = {"module.queue": torch.zeros(4, 8)}
HEADS = {"heads.bottleneck.0.weight": torch.ones(8), "pixel_mean": torch.ones(1, 3, 1, 1)}
CLASSIFIER = {"bottleneck.weight": torch.ones(8), "classifier.weight": torch.ones(4, 8)}
# As the projects publish them: what stands before the names, what is beside them, where it lies.
SHAPES: dict[str, tuple[str, str, Callable[[Tensors], Any]]] = {
    "MoCo, LUPerson": (
        "lup_moco_r50.pth", "state_dict.module.encoder_q.",
        lambda s: {"epoch": 200, "arch": "resnet18", "state_dict":
                   under("module.encoder_k.", s) | under("module.encoder_q.", s) | QUEUE},
    ),
    "fast-reid": (
        "model.pth", "model.backbone.", lambda s: {"model": under("backbone.", s) | HEADS},
    ),
    "torchreid": (
        "model.pth.tar", "state_dict.module.", lambda s: {"state_dict": under("module.", s)},
    ),
    "Cluster Contrast": (
        "model_best.pth.tar", "state_dict.module.base.",
        lambda s: {"state_dict": under("module.base.", s), "best_mAP": 0.8},
    ),
    "reid-strong-baseline": (
        "resnet.pth", "base.", lambda s: under("base.", s) | CLASSIFIER,
    ),
    "CION": (
        "cion.pth", "teacher.module.backbone.",
        lambda s: {"student": under("module.backbone.", {n: t + 1 for n, t in s.items()}),
                   "teacher": under("module.backbone.", s)},
    ),
    "plain": ("epoch.ckpt", "", lambda s: s),
}  # fmt: skip


@pytest.mark.parametrize("project", SHAPES)
def test_a_resnet_of_each_shape__loads(project: str, resnet: Tensors, tmp_path: Path) -> None:
    name, prefix, make = SHAPES[project]
    torch.save(make(resnet), tmp_path / name)
    found = read_published(tmp_path / name)
    assert (found.backbone, found.prefix) == ("resnet18", prefix)
    assert found.tensors.keys() == resnet.keys()
    assert all(torch.equal(found.tensors[n], resnet[n]) for n in resnet)
    others = {"fast-reid": HEADS, "reid-strong-baseline": CLASSIFIER}.get(project, {})
    if project == "MoCo, LUPerson":
        others = under("module.encoder_k.", resnet) | QUEUE
    assert set(found.left_out) == others.keys()


@pytest.mark.parametrize("name", ["resnet34", "resnet50", "resnet101"])
def test_which_resnet(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        state = getattr(torchvision.models, name)(weights=None).state_dict()
    # A file of some kB: each tensor is one number, again and again.
    state = {n: torch.zeros((), dtype=t.dtype).expand(t.shape) for n, t in state.items()}
    torch.save(state, tmp_path / "x.pth")
    found = read_published(tmp_path / "x.pth")
    assert found.backbone.removeprefix("timm:") == name
    assert found.left_out == ["fc.weight", "fc.bias"]


def hugging_face_dinov2() -> Tensors:
    """Two blocks of width 192, patches of 14 pixels, 6 x 6 positions, under Dinov2Model's names."""
    torch.manual_seed(1)
    width, state = 192, {}
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, 1 + 36, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,), "layernorm.bias": (width,),
    }  # fmt: skip
    for number in range(12):
        for layer, outputs, inputs in (
            ("attention.attention.query", width, width), ("attention.attention.key", width, width),
            ("attention.attention.value", width, width), ("attention.output.dense", width, width),
            ("mlp.fc1", 4 * width, width), ("mlp.fc2", width, 4 * width),
        ):  # fmt: skip
            shapes[f"encoder.layer.{number}.{layer}.weight"] = (outputs, inputs)
            shapes[f"encoder.layer.{number}.{layer}.bias"] = (outputs,)
        for norm in ("norm1", "norm2"):
            shapes[f"encoder.layer.{number}.{norm}.weight"] = (width,)
            shapes[f"encoder.layer.{number}.{norm}.bias"] = (width,)
        for scale in (1, 2):
            shapes[f"encoder.layer.{number}.layer_scale{scale}.lambda1"] = (width,)
    for name, shape in shapes.items():
        state[name] = torch.randn(shape) * 0.2 + (1.0 if "norm" in name else 0.0)
    return state


def reference(state: Tensors, images_BCHW: Tensor, num_heads: int) -> Tensor:
    """DINOv2's forward, by its paper's formulas: tokens (B, L, C) after the last norm."""

    def linear(tokens: Tensor, name: str) -> Tensor:
        return F.linear(tokens, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(tokens: Tensor, name: str) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.layer_norm(tokens, weight.shape, weight, bias, eps=1e-6)

    def heads(tokens_BLC: Tensor) -> Tensor:
        return tokens_BLC.unflatten(2, (num_heads, -1)).transpose(1, 2)

    kernel = "embeddings.patch_embeddings.projection"
    patches = F.conv2d(images_BCHW, state[f"{kernel}.weight"], state[f"{kernel}.bias"], stride=14)
    first = state["embeddings.cls_token"].expand(len(images_BCHW), -1, -1)
    x = torch.cat([first, patches.flatten(2).mT], 1) + state["embeddings.position_embeddings"]
    for number in range(sum(name.endswith("norm1.weight") for name in state)):
        layer = f"encoder.layer.{number}"
        inner = norm(x, f"{layer}.norm1")
        q, k, v = (
            heads(linear(inner, f"{layer}.attention.attention.{part}"))
            for part in ("query", "key", "value")
        )
        scores = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        mixed = linear((scores @ v).transpose(1, 2).flatten(2), f"{layer}.attention.output.dense")
        x = x + state[f"{layer}.layer_scale1.lambda1"] * mixed
        inner = F.gelu(linear(norm(x, f"{layer}.norm2"), f"{layer}.mlp.fc1"))
        x = x + state[f"{layer}.layer_scale2.lambda1"] * linear(inner, f"{layer}.mlp.fc2")
    return norm(x, "layernorm")


def test_dinov2_of_hugging_face__gives_the_features_of_its_own_forward(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    state = hugging_face_dinov2()
    save_file(
        state | {"embeddings.mask_token": torch.zeros(1, 192)}, tmp_path / "dinov2.safetensors"
    )
    found = read_published(tmp_path / "dinov2.safetensors")
    assert found.backbone == "timm:vit_tiny_patch14_*dinov2"
    assert found.left_out == ["embeddings.mask_token"]
    # timm has no DINOv2 so narrow; its names and shapes are those of the next wider one.
    import timm

    model = timm.create_model(
        "vit_small_patch14_dinov2", embed_dim=192, num_heads=3, num_classes=0, img_size=(84, 84)
    ).eval()
    model.load_state_dict(found.tensors)
    images = torch.randn(2, 3, 84, 84)
    expected = reference(state, images, num_heads=3)
    torch.testing.assert_close(model.forward_features(images), expected, atol=1e-3, rtol=1e-3)


def test_the_command__says_the_settings_and_what_is_left_out(
    resnet: Tensors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save({"model": under("backbone.", resnet) | HEADS}, tmp_path / "published.pth")
    out = tmp_path / "weights.safetensors"
    command = ["daal", "convert", str(tmp_path / "published.pth"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    said = capsys.readouterr()
    assert said.out == f"network.backbone=resnet18 network.weights={out}\n"
    assert "left out: 2 tensors: heads.bottleneck.0.weight, pixel_mean" in said.err
    config = NetworkConfig(backbone="resnet18", weights=str(out))
    layers = build_backbone(config, InputConfig()).layers
    assert torch.equal(layers.state_dict()["conv1.weight"], resnet["conv1.weight"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {"a": 1, "b": torch.ones(3)}, "holds no network that is known; it has names"),
        (lambda s: [], r"names like \(none\)"),
        (lambda s: s | {"conv1.weight": torch.ones(64, 1, 7, 7)}, "images of 1 channels"),
        (lambda s: {n: t for n, t in s.items() if "layer4" not in n}, "is not known"),
    ],
)
def test_what_is_no_backbone__is_said(
    change: Callable[[Tensors], Any], said: str, resnet: Tensors, tmp_path: Path
) -> None:
    torch.save(change(resnet), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=said) as raised:
        read_published(tmp_path / "x.pth")
    assert re.search("give|get", str(raised.value))
