"""What a run needs before it starts: memory, disk, traffic between nodes and hours.

Sizes follow from the configuration and the files; speeds from a probe of some seconds on one
device. Hours are estimates: they leave out start-up, scoring and whatever else shares the machines.
"""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from cluster.soft_labels import hard_label_weights
from daal.config import Config, FitConfig
from daal.data.augment import augment, draw_table, normalise, sample_seeds
from daal.data.images import decode
from daal.data.layouts import load_records
from daal.nn.network import DaalNetwork
from daal.optimizer import make_optimizer
from daal.step import TrainBatch, mixed_precision, train_step
from pipelines.tools.validate import root_of

WORKERS = (1, 2, 4, 8, 16)
PROBE_PIXELS = 8 * 384 * 128  # of a step; speeds are taken as proportional
PROBE_SECONDS = 2.0
BETWEEN_NODES = 10e9 / 8  # bytes a second: 10 Gbit/s, each worker on a node of its own
LABEL_SECONDS = 30e-6  # an image, beside the neighbour search (docs/results.md)
SEARCH_COST = 1.5  # of the bare product over half of the pairs (docs/results.md)


@dataclass(frozen=True)
class Probe:
    """Speeds of one device and one CPU of this machine."""

    device: str
    train_images_per_s: float
    extract_images_per_s: float
    decode_images_per_s: float
    product_flops: float  # of fp32 matrix products, a second
    bytes_per_image: int  # of a training step, beside the weights
    num_parameters: int
    num_features: int


@dataclass(frozen=True)
class Needs:
    """Of one run at one number of workers; bytes and seconds."""

    num_workers: int
    device_bytes: int  # of each worker's device
    decode_cpus: float  # to feed training when images aren't kept decoded
    bytes_per_step: int  # sent and received by each worker: gradients
    bytes_per_iteration: int  # over the network in all: features in, weights out
    hours: float


@dataclass(frozen=True)
class Size:
    """A run's size: what doesn't depend on the number of workers, and what does."""

    num_source: int
    num_target: int  # training images
    num_test: int
    jpeg_bytes: int
    decoded_bytes: int
    disk_bytes: int
    needs: list[Needs]
    probe: Probe


def size_of(config: Config, probe: Probe | None = None) -> Size:
    """Sizes from the data sets' files, speeds from the probe (made here if not given).

    Raises DataError if a data set can't be read.
    """
    counts: dict[str, tuple[int, int]] = {"source": (0, 0)}
    jpeg_bytes = 0
    for domain, settings in config.domains():
        root = root_of(domain, settings)
        records = load_records(settings.layout, root)
        num_train = sum(record.split == "train" for record in records)
        kept = min(num_train, config.max_train_images or num_train)
        counts[domain] = (kept, len(records) - num_train)
        used = records if domain == "target" else [r for r in records if r.split == "train"]
        jpeg_bytes += sum((root / record.path).stat().st_size for record in used)
    (num_source, _), (num_target, num_test) = counts["source"], counts["target"]
    probe = probe or run_probe(config)

    pixels = 3 * config.input.height * config.input.width
    feature_bytes = 4 * probe.num_features * (num_target + num_test)
    weight_bytes = 4 * probe.num_parameters
    each = feature_bytes + weight_bytes  # an iteration's features and checkpoint
    return Size(
        *(num_source, num_target, num_test, jpeg_bytes),
        decoded_bytes=pixels * (num_source + num_target + num_test),
        disk_bytes=jpeg_bytes + (config.iterations + 1) * each + 3 * weight_bytes,
        needs=[
            _needs(config, probe, workers, num_source, num_target, num_test)
            for workers in WORKERS
            if config.common_batch % workers == 0
        ],
        probe=probe,
    )


def _needs(
    config: Config, probe: Probe, workers: int, num_source: int, num_target: int, num_test: int
) -> Needs:
    weight_bytes = 4 * probe.num_parameters
    # Each sends and receives almost twice the gradients (ring all-reduce).
    bytes_per_step = int(2 * weight_bytes * (workers - 1) / workers)
    batch = config.adapt.batch_source + config.adapt.batch_target
    share = -(-batch // (workers * config.accumulate))
    momenta = 2 if config.adapt.optim.optimizer == "adam" else 1

    def training(fit: FitConfig, num_images: int) -> float:
        size = fit.batch_source + fit.batch_target
        in_pass = fit.batch_target or fit.batch_source
        steps = fit.epochs * (fit.steps_per_epoch or max(1, num_images // in_pass))
        return steps * (
            size / (workers * probe.train_images_per_s) + bytes_per_step / BETWEEN_NODES
        )

    num_images = num_target + num_test
    extraction = num_images / (workers * probe.extract_images_per_s)
    flops = SEARCH_COST * num_target**2 * probe.num_features
    labels = flops / (workers * probe.product_flops) + LABEL_SECONDS * num_target
    seconds = config.iterations * (training(config.adapt, num_target) + extraction + labels)
    if not config.target_only:
        seconds += training(config.pretrain, num_source)
    seconds += extraction
    return Needs(
        num_workers=workers,
        device_bytes=(2 + momenta) * weight_bytes + share * probe.bytes_per_image,
        decode_cpus=workers * probe.train_images_per_s / probe.decode_images_per_s,
        bytes_per_step=bytes_per_step,
        bytes_per_iteration=4 * probe.num_features * num_images + workers * weight_bytes,
        hours=seconds / 3600,
    )


def run_probe(config: Config) -> Probe:
    """Time training steps, extraction, decoding and a product on the device that is here."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    num_clusters = 512
    network = DaalNetwork(
        config.network.model_copy(update={"weights": "none"}),
        num_source_ids=0 if config.target_only else 512,
        num_clusters=num_clusters,
        domain_head=config.network.specific_branch and not config.target_only,
    )
    network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    autocast = mixed_precision(device, config.mixed_precision)
    optimizer = make_optimizer(network, config.adapt.optim)
    height, width = config.input.height, config.input.width
    num_images = min(64, max(8, PROBE_PIXELS // (height * width)))  # small images go by many
    pixels = torch.randint(256, (num_images, 3, height, width), dtype=torch.uint8, device=device)
    seeds = sample_seeds(0, 1, 0, 0, np.arange(num_images))
    table = torch.from_numpy(draw_table(seeds, height, width, config.augment)).to(device)
    num_source = 0 if config.target_only else num_images // 2
    labels = torch.arange(num_images - num_source, device=device)
    saved: list[int] = []

    def step() -> None:
        batch = TrainBatch(
            augment(pixels, table),
            torch.arange(num_source, device=device),
            hard_label_weights(labels, num_clusters),
            labels,
        )
        diverged = torch.zeros((), device=device)
        weights = config.loss.model_copy(update={"triplet_weight": 0.0, "teacher_weight": 0.0})
        train_step(network, [batch], optimizer, weights, diverged, lambda flag: None, autocast)

    def count(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        step()
    train = _per_second(step, device) * num_images
    network.eval()
    with torch.inference_mode(), autocast:
        extract = _per_second(lambda: network.extract(normalise(pixels)), device) * num_images
    side = 2048
    factor = torch.randn(side, side, device=device)
    product = _per_second(lambda: factor @ factor, device) * 2 * side**3
    jpeg = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (128, 64, 3), np.uint8)
    Image.fromarray(noise).resize((64, 128)).save(jpeg, "JPEG")
    data = jpeg.getvalue()
    decoding = _per_second(lambda: decode(data, height, width), torch.device("cpu"))
    parameters = sum(p.numel() for p in network.parameters())
    own = sum(p.nbytes for p in network.parameters())  # saved too, but only once
    return Probe(
        *(str(device), train, extract, decoding, product),
        bytes_per_image=max(0, sum(saved) - own) // num_images,
        num_parameters=parameters,
        num_features=network.num_features,
    )


def _per_second(work: Callable[[], Any], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    work()
    wait()
    times, started = 0, time.perf_counter()
    while times < 2 or time.perf_counter() - started < PROBE_SECONDS:
        work()
        times += 1
        wait()
    return times / (time.perf_counter() - started)
