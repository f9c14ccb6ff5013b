"""Networks of timm as backbones: their maps, a training step, and export."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_checks import exports, trained
from safetensors.torch import save_file
from timm_networks import EVERY_DAY, NIGHTLY
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from daal.config import AdaptOptimConfig, Config, InputConfig, NetworkConfig
from daal.errors import CheckpointError, ConfigError
from daal.nn.backbone import Backbone, build_backbone
from daal.nn.backbones import timm as timm_file
from daal.nn.batch_norm import BatchNorm2d
from daal.nn.network import DaalNetwork
from daal.optimizer import make_optimizer
from daal.trained_model import TrainedModel

timm = pytest.importorskip("timm")

INPUT = InputConfig(height=64, width=32)
NETWORKS = [*EVERY_DAY, *(pytest.param(name, marks=pytest.mark.nightly) for name in NIGHTLY)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def of(name: str, **changes: Any) -> NetworkConfig:
    return NetworkConfig(backbone=f"timm:{name}", weights="none", **changes)


def built(name: str, input: InputConfig = INPUT, **changes: Any) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(of(name, **changes), input)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step__and_an_export(name: str, tmp_path: Path) -> None:
    exports(trained(f"timm:{name}", tmp_path), tmp_path)


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_timms_own__at_any_size(name: str) -> None:
    for input in (INPUT, InputConfig(height=96, width=64)):
        backbone = built(name, input)
        backbone.layers.eval()
        torch.manual_seed(2)
        images = torch.randn(2, 3, input.height, input.width)
        map_BCHW = backbone.layers(images)
        assert map_BCHW.shape[:3] == (2, backbone.channels, backbone.num_rows)
        tokens = backbone.layers.timm.forward_features(images)  # type: ignore[operator, union-attr]
        if name.startswith("vit"):
            num_prefix = backbone.layers.timm.num_prefix_tokens  # type: ignore[union-attr]
            torch.testing.assert_close(map_BCHW.flatten(2).mT, tokens[:, num_prefix:])
        elif name.startswith("swin"):
            torch.testing.assert_close(map_BCHW.permute(0, 2, 3, 1), tokens)
        else:
            torch.testing.assert_close(map_BCHW, tokens)


def test_batch_norms_are_daals_and_compute_what_timms_did() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("mobilenetv4_conv_small_035", num_classes=0, global_pool="").train()
    ours = built("mobilenetv4_conv_small_035").layers.train()
    norms = [m for m in ours.modules() if isinstance(m, _BatchNorm)]
    assert norms and {type(norm) for norm in norms} == {BatchNorm2d}
    images = torch.randn(4, 3, 64, 32)
    torch.testing.assert_close(ours(images), plain.forward_features(images))


def test_class_token__is_the_map_of_one_place() -> None:
    token = built("vit_tiny_patch16_224", pooling="cls", attention={"mode": "none"})
    assert token.num_rows == 1
    images = torch.randn(2, 3, 64, 32)
    features = token.layers.timm.forward_features(images)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(token.layers(images)[:, :, 0, 0], features[:, 0])
    with pytest.raises(ConfigError, match="class token, which timm:convnext_atto hasn't"):
        built("convnext_atto", pooling="cls", attention={"mode": "none"})
    with pytest.raises(ConfigError, match="class token, which resnet18 hasn't"):
        config = NetworkConfig(
            backbone="resnet18", weights="none", pooling="cls", attention={"mode": "none"}
        )
        build_backbone(config, INPUT)


def test_last_stride__doubles_the_map_or_is_refused() -> None:
    for name in ("mobilenetv4_conv_small_035", "resnet10t", "regnety_002"):
        images = torch.randn(2, 3, 64, 32)
        assert built(name).layers(images).shape[2:] == (2, 1)
        larger = built(name, last_stride=1)
        assert larger.layers(images).shape[2:] == (4, 2)
        assert larger.num_rows == 4
    for name in ("vit_tiny_patch16_224", "convnext_atto"):
        with pytest.raises(ConfigError, match=f"can't be had from timm:{name}"):
            built(name, last_stride=1)


def test_stages__are_all_parameters_once__of_a_vit_the_patches_first() -> None:
    for name in EVERY_DAY:
        backbone = built(name)
        parameters = dict(backbone.layers.named_parameters())
        inside = [
            {n for n in parameters if any(f"{n}.".startswith(f"{part}.") for part in stage)}
            for stage in backbone.stages
        ]
        assert sum(map(len, inside)) == len(set().union(*inside)) == len(parameters)
    vit = built("vit_tiny_patch16_224").stages
    assert vit[0] == ["timm.patch_embed"]
    assert set(vit[1]) == {"timm.blocks.0", "timm.cls_token", "timm.pos_embed"}
    assert len(vit) == 13
    with pytest.raises(ConfigError, match="which has 13 stages; lower it"):
        built("vit_tiny_patch16_224", frozen_stages=13)


def test_layer_decay__of_the_last_stage_first_and_adamw_spares_what_is_no_weight() -> None:
    network = DaalNetwork(of("vit_tiny_patch16_224"), input=INPUT)
    optim = AdaptOptimConfig(optimizer="adamw", layer_decay=0.5, lr_backbone=1.0, lr_new=3.0)
    names = {id(p): n for n, p in network.named_parameters()}
    found = {
        names[id(p)]: (group["base_lr"], group["weight_decay"])
        for group in make_optimizer(network, optim).param_groups
        for p in group["params"]
    }
    assert found["backbone.timm.blocks.11.mlp.fc1.weight"] == (0.5, 0.05)
    assert found["backbone.timm.blocks.10.mlp.fc1.bias"] == (0.25, 0.0)
    assert found["backbone.timm.patch_embed.proj.weight"] == (0.5**13, 0.05)
    assert found["backbone.timm.pos_embed"] == (0.5**12, 0.0)
    assert found["attention.attention.depthwise.weight"] == (3.0, 0.05)


def test_weights_file__with_timms_names_and_positions_of_another_size(tmp_path: Path) -> None:
    torch.manual_seed(3)
    published = timm.create_model("vit_tiny_patch16_224").state_dict()  # 14 x 14 patches
    file = tmp_path / "vit.safetensors"
    save_file({n: t.half() for n, t in published.items()}, file)
    config = of("vit_tiny_patch16_224").model_copy(update={"weights": str(file)})
    state = build_backbone(config, INPUT).layers.state_dict()
    name = "blocks.3.attn.qkv.weight"
    assert torch.equal(state[f"timm.{name}"], published[name].half().float())
    assert state["timm.pos_embed"].shape == (1, 1 + 4 * 2, 192)
    for other in ("vit_small_patch16_224", "convnext_atto"):
        with pytest.raises(CheckpointError, match=f"does not hold a timm:{other}"):
            build_backbone(config.model_copy(update={"backbone": f"timm:{other}"}), INPUT)


def test_statistics__are_the_backbones_and_go_into_the_model() -> None:
    config = Config(network=of("vit_tiny_patch16_224"), input=INPUT, mixed_precision=False)
    network = DaalNetwork(config.network, input=INPUT)
    assert network.statistics.mean_C == (0.5, 0.5, 0.5)
    model = TrainedModel(config, network.state_dict())
    assert model.mean_C11.flatten().tolist() == [127.5] * 3


@pytest.mark.parametrize(
    ("name", "input", "changes", "said"),
    [
        ("vit_tiny_patch16_22", INPUT, {}, 'no network of timm; did you mean "vit_tiny_patch16_2'),
        ("hf-hub:timm/resnet18", INPUT, {}, "no network of timm"),
        ("vit_tiny_patch16_224", InputConfig(height=60, width=32), {}, "patches of 16x16 pixels"),
        ("levit_128s", INPUT, {}, "BatchNorm1d|no map"),
        ("resnet10t", INPUT, {"ibn": "a"}, "made for the blocks of torchvision's ResNets"),
        ("resnet10t", INPUT, {"stripes": 3}, r"needs a feature map of as many rows; .* gives 2"),
    ],
)
def test_what_does_not_fit__is_refused_in_a_sentence(
    name: str, input: InputConfig, changes: dict[str, Any], said: str
) -> None:
    config = NetworkConfig(backbone=f"timm:{name}", **{"weights": "none", **changes})
    with pytest.raises(ConfigError, match=said):
        build_backbone(config, input)


def test_domain_batch_norm__without_any_is_refused() -> None:
    config = of("vit_tiny_patch16_224", domain_batch_norm=True, attention={"mode": "none"})
    with pytest.raises(ConfigError, match="domain_batch_norm=true has no effect"):
        DaalNetwork(config, 3, 4, True, INPUT)


def test_pretrained__asks_the_hub_for_timms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    published = timm.create_model("vit_tiny_patch16_224").state_dict()
    asked: list[str] = []

    def hub(name: str, **options: Any) -> dict[str, Tensor]:
        asked.append(name)
        assert options["weights_only"] is True
        if len(asked) > 1:
            raise OSError("no network")
        return dict(published)

    monkeypatch.setattr("timm.models._builder.has_hf_hub", lambda necessary=False: True)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", hub)
    config = of("vit_tiny_patch16_224").model_copy(update={"weights": "pretrained"})
    state = build_backbone(config, INPUT).layers.state_dict()
    assert torch.equal(state["timm.norm.weight"], published["norm.weight"])
    assert torch.equal(state["timm.blocks.0.mlp.fc1.weight"], published["blocks.0.mlp.fc1.weight"])
    assert asked[0].startswith("timm/vit_tiny_patch16_224.")
    with pytest.raises(CheckpointError, match=r"can't be had \(no network\)"):
        build_backbone(config, INPUT)


def test_looking_at_a_network__changes_nothing_that_is_drawn_after_it() -> None:
    timm_file._look_at.cache_clear()
    networks = []
    for _ in range(2):
        torch.manual_seed(5)
        networks.append(DaalNetwork(of("vit_tiny_patch16_224"), 3, 4, True, INPUT).state_dict())
    assert all(torch.equal(networks[1][name], tensor) for name, tensor in networks[0].items())
