"""OSNet: the network of its paper, with the authors' names."""

from pathlib import Path

import pytest
import torch
from backbone_checks import exports, trained
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from daal.config import InputConfig, NetworkConfig
from daal.errors import CheckpointError, ConfigError
from daal.nn.backbone import build_backbone
from daal.nn.published_weights import read_published

INPUT = InputConfig(height=256, width=128)
SMALL = NetworkConfig(backbone="osnet:x0_25", weights="none")


@pytest.mark.parametrize(
    ("name", "millions", "mult_adds"),  # of the paper's Table 2 and of the authors' model zoo
    [("x1_0", 2.2, 978.9e6), ("x0_75", 1.3, 571.8e6), ("x0_5", 0.6, 272.9e6),
     ("x0_25", 0.2, 82.3e6)],
)  # fmt: skip
def test_size_and_cost__as_published(name: str, millions: float, mult_adds: float) -> None:
    with torch.device("meta"):
        config = SMALL.model_copy(update={"backbone": f"osnet:{name}"})
        backbone = build_backbone(config, INPUT)
        # They count the FC layer of 512 outputs, and its BatchNorm, that follow the pooling.
        of_fc = 512 * backbone.channels + 3 * 512
        with FlopCounterMode(display=False) as counter:
            map_BCHW = backbone.layers(torch.empty(1, 3, 256, 128))
    num_parameters = sum(p.numel() for p in backbone.layers.parameters()) + of_fc
    assert round(num_parameters / 1e6, 1) == millions
    assert counter.get_total_flops() / 2 == pytest.approx(mult_adds, rel=0.01)
    assert map_BCHW.shape == (1, backbone.channels, backbone.num_rows, 8)


def test_a_step(tmp_path: Path) -> None:
    trained("osnet:x0_25", tmp_path)


@pytest.mark.nightly
def test_an_export(tmp_path: Path) -> None:
    exports(trained("osnet:x0_25", tmp_path), tmp_path)


def test_a_checkpoint_of_torchreid__is_converted(tmp_path: Path) -> None:
    state = build_backbone(SMALL, INPUT).layers.state_dict()
    heads = {"module.classifier.weight": torch.ones(3, 512), "module.fc.0.bias": torch.ones(512)}
    under = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": under | heads, "epoch": 60}, tmp_path / "model.pth.tar-60")
    found = read_published(tmp_path / "model.pth.tar-60")
    assert (found.backbone, found.prefix) == ("osnet:x0_25", "state_dict.module.")
    assert found.tensors.keys() == state.keys()
    assert found.left_out == list(heads)


def test_weights__under_the_authors_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = build_backbone(SMALL, INPUT).layers.state_dict()
    some = {"conv1.conv.weight", "conv1.bn.running_mean", "conv2.0.conv2d.3.conv1.weight",
            "conv2.0.gate.fc1.bias", "conv2.0.downsample.bn.weight", "conv2.2.0.conv.weight",
            "conv4.1.conv3.conv.weight", "conv5.bn.bias"}  # fmt: skip
    assert some <= state.keys()
    file = tmp_path / "osnet.safetensors"
    save_file(state | {"fc.0.weight": torch.ones(512, 128)}, file)
    config = SMALL.model_copy(update={"weights": str(file)})
    loaded = build_backbone(config, INPUT).layers.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    with pytest.raises(CheckpointError, match="does not hold an osnet:x0_5"):
        build_backbone(config.model_copy(update={"backbone": "osnet:x0_5"}), INPUT)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"backbone": "osnet:x2"}, "take one of osnet:x1_0"), ({"last_stride": 1}, "set it to 2"),
     ({"ibn": "a"}, "set it to none"), ({"pooling": "cls"}, "needs a class token")],
)  # fmt: skip
def test_what_it_lacks__is_refused(change: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_backbone(SMALL.model_copy(update=change), INPUT)
