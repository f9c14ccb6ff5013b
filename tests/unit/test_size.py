"""What a run needs: arithmetic by hand, and one real step."""

from tiny_run import changed

from daal.nn.network import DaalNetwork
from pipelines.tools.size import StepSize, size_of, step_size

STEP = StepSize(num_parameters=1000, num_features=16, bytes_per_image=1_000_000)


def test_by_hand(tiny_config, tiny_world):
    config = changed(tiny_config, "iterations=3")
    found = size_of(config, STEP)
    files = {domain: list((tiny_world / domain).rglob("*.jpg")) for domain in ("source", "target")}
    train = {d: [f for f in files[d] if "train" in str(f)] for d in files}
    assert (found.num_source, found.num_target) == (len(train["source"]), len(train["target"]))
    assert found.num_test == len(files["target"]) - found.num_target
    used = [*train["source"], *files["target"]]
    assert found.jpeg_bytes == sum(file.stat().st_size for file in used)
    assert found.decoded_bytes == 3 * 32 * 16 * len(used)
    features = 4 * 16 * len(files["target"])
    assert found.disk_bytes == found.jpeg_bytes + 4 * (features + 4000) + 3 * 4000

    assert [each.num_workers for each in found.workers] == [1, 2, 4, 8]  # 16 don't share 8 images
    one, two = found.workers[:2]
    assert one.bytes_per_step == 0 and two.bytes_per_step == 4000
    assert one.device_bytes == 3 * 4000 + 16 * 1_000_000
    assert two.device_bytes == 3 * 4000 + 8 * 1_000_000
    assert two.bytes_per_iteration == features + 2 * 4000
    compressed = changed(config, "compress_gradients=true", "ray.num_workers=2")
    assert size_of(compressed, STEP).workers[1].bytes_per_step == 2000
    alone = changed(config, 'source.root=""', "adapt.batch_source=0")
    assert size_of(alone, STEP).num_source == 0


def test_a_real_step(tiny_config):
    config = changed(tiny_config, "input.height=64", "input.width=32")
    found = step_size(config)
    network = DaalNetwork(config.network, 512, 512, True)
    assert found.num_parameters == sum(p.numel() for p in network.parameters())
    assert found.num_features == 512
    # A ResNet-18 keeps some MB an image for its backward pass, and four times that at 4 x the size.
    larger = step_size(changed(config, "input.height=128", "input.width=64"))
    assert 2.5 < larger.bytes_per_image / found.bytes_per_image < 4.5
