"""What a run needs: arithmetic by hand, and one real probe."""

import dataclasses
from pathlib import Path

import pytest

from daal.config import Config
from daal.load_config import apply_overrides, check_config
from daal.nn.network import DaalNetwork
from pipelines.tools import size as needs
from pipelines.tools.size import Probe, run_probe, size_of

PROBE = Probe(
    "cuda", train_images_per_s=100, extract_images_per_s=400, decode_images_per_s=50,
    product_flops=1e12, bytes_per_image=1_000_000, num_parameters=1000, num_features=16,
)  # fmt: skip


def changed(config: Config, *settings: str) -> Config:
    return check_config(apply_overrides(config.model_dump(), settings))


def test_by_hand(tiny_config: Config, tiny_world: Path) -> None:
    config = changed(
        tiny_config, "iterations=3", "adapt.epochs=2", "adapt.steps_per_epoch=5",
        "adapt.batch_source=8", "adapt.batch_target=8", "pretrain.epochs=1",
        "pretrain.steps_per_epoch=4", "pretrain.batch_source=16",
    )  # fmt: skip
    found = size_of(config, PROBE)
    files = {domain: list((tiny_world / domain).rglob("*.jpg")) for domain in ("source", "target")}
    train = {d: [f for f in files[d] if "train" in str(f)] for d in files}
    assert (found.num_source, found.num_target) == (len(train["source"]), len(train["target"]))
    assert found.num_test == len(files["target"]) - found.num_target
    used = [*train["source"], *files["target"]]
    assert found.jpeg_bytes == sum(file.stat().st_size for file in used)
    assert found.decoded_bytes == 3 * 32 * 16 * len(used)
    features = 4 * 16 * len(files["target"])
    assert found.disk_bytes == found.jpeg_bytes + 4 * (features + 4000) + 3 * 4000

    assert [need.num_workers for need in found.needs] == [1, 2, 4, 8]  # 16 don't share 8 images
    one, two = found.needs[:2]
    assert one.bytes_per_step == 0 and two.bytes_per_step == 4000
    assert one.device_bytes == 3 * 4000 + 16 * 1_000_000
    assert two.device_bytes == 3 * 4000 + 8 * 1_000_000
    assert (one.decode_cpus, two.decode_cpus) == (2, 4)
    assert two.bytes_per_iteration == features + 2 * 4000
    training = 3 * 10 * 16 / 100 + 4 * 16 / 100
    extraction = 4 * len(files["target"]) / 400
    labels = 3 * (1.5 * found.num_target**2 * 16 / 1e12 + 30e-6 * found.num_target)
    assert one.hours == pytest.approx((training + extraction + labels) / 3600)
    assert one.hours / 2 < two.hours < one.hours


def test_without_a_source_there_is_no_pretraining(tiny_config: Config) -> None:
    both = changed(tiny_config, "adapt.batch_source=0", "adapt.batch_target=16")
    alone = changed(both, 'source.root=""')
    assert size_of(alone, PROBE).num_source == 0
    assert size_of(alone, PROBE).needs[0].hours < size_of(both, PROBE).needs[0].hours


def test_a_real_probe(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "PROBE_SECONDS", 0.1)
    config = changed(tiny_config, "input.height=64", "input.width=32")
    probe = run_probe(config)
    network = DaalNetwork(config.network, 512, 512, True)
    assert probe.num_parameters == sum(p.numel() for p in network.parameters())
    assert probe.num_features == 512
    speeds = dataclasses.asdict(probe)
    assert all(speeds[name] > 0 for name in speeds if name.endswith(("_s", "flops")))
    assert probe.extract_images_per_s > probe.train_images_per_s
    # A ResNet-18 keeps some MB an image for its backward pass, and four times that at 4 x the size.
    larger = run_probe(changed(config, "input.height=128", "input.width=64"))
    assert 2.5 < larger.bytes_per_image / probe.bytes_per_image < 4.5
