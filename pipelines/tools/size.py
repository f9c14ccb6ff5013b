"""What a run needs before it starts: memory, disk and traffic between nodes.

Sizes follow from the configuration, the data sets' files and the network; nothing is timed.
"""

from dataclasses import dataclass

import numpy as np
import torch

from cluster.soft_labels import hard_label_weights
from daal.config import Config
from daal.data.augment import augment, draw_table, sample_seeds
from daal.data.records import of_split
from daal.data.sources import listing, load_set, roots_of
from daal.nn.network import DaalNetwork
from daal.optimizer import make_optimizer
from daal.precision import mixed_precision
from daal.step import TrainBatch, train_step
from pipelines.tools.validate import check_root

WORKERS = (1, 2, 4, 8, 16)
NUM_IMAGES, NUM_CLUSTERS = 8, 512  # of the step that is measured


@dataclass(frozen=True)
class StepSize:
    """What one training step holds on its device."""

    num_parameters: int
    num_features: int  # channels of an image's feature
    bytes_per_image: int  # kept for the backward pass, besides the weights


@dataclass(frozen=True)
class WorkerSize:
    """Bytes of a worker, if the run has this number of workers."""

    num_workers: int
    device_bytes: int  # weights, gradients, optimizer and images of a step
    bytes_per_step: int  # gradients that it sends and receives
    bytes_per_iteration: int  # features and weights of all workers, over the network


@dataclass(frozen=True)
class Size:
    """Numbers of images and bytes of a whole run, and of each worker."""

    num_source: int  # training images
    num_target: int  # training images
    num_test: int
    jpeg_bytes: int
    decoded_bytes: int
    disk_bytes: int  # of the run folder and the store of images
    workers: list[WorkerSize]


def size_of(config: Config, step: StepSize | None = None) -> Size:
    """Sizes of a run; `step` is measured here if it isn't given.

    Raises DataError if a data set can't be read.
    """
    counts = {"source": 0}
    num_test = jpeg_bytes = 0
    for domain, settings in config.domains():
        check_root(domain, settings)
        records = load_set(settings)
        num_train = len(of_split(records, "train"))
        counts[domain] = min(num_train, config.max_train_images or num_train)
        if domain == "target":
            num_test = len(records) - num_train
        else:
            records = of_split(records, "train")
        sizes = listing(roots_of(settings), records)["size"].to_numpy()
        jpeg_bytes += int(sizes[sizes > 0].sum())
    step = step or step_size(config)
    num_images = counts["target"] + num_test
    feature_bytes, weight_bytes = 4 * step.num_features * num_images, 4 * step.num_parameters
    pixels = 3 * config.input.height * config.input.width
    return Size(
        num_source=counts["source"],
        num_target=counts["target"],
        num_test=num_test,
        jpeg_bytes=jpeg_bytes,
        decoded_bytes=pixels * (counts["source"] + num_images),
        # Each iteration keeps its features and its checkpoint.
        disk_bytes=jpeg_bytes
        + (config.iterations + 1) * (feature_bytes + weight_bytes)
        + 3 * weight_bytes,
        workers=[
            _worker_size(config, step, feature_bytes, number)
            for number in WORKERS
            if config.common_batch % number == 0
        ],
    )


def _worker_size(config: Config, step: StepSize, feature_bytes: int, number: int) -> WorkerSize:
    weight_bytes = 4 * step.num_parameters
    gradient_bytes = weight_bytes // 2 if config.compress_gradients else weight_bytes
    batch = config.adapt.batch_source + config.adapt.batch_target
    share = -(-batch // (number * config.accumulate))
    momenta = 1 if config.adapt.optim.optimizer == "sgd" else 2
    return WorkerSize(
        num_workers=number,
        device_bytes=(2 + momenta) * weight_bytes + share * step.bytes_per_image,
        # A ring all-reduce sends and receives almost twice the gradients.
        bytes_per_step=int(2 * gradient_bytes * (number - 1) / number),
        bytes_per_iteration=feature_bytes + number * weight_bytes,
    )


def step_size(config: Config) -> StepSize:
    """Run one small training step and add up the tensors kept for its backward pass."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    num_source = 0 if config.target_only else NUM_IMAGES // 2
    height, width = config.input.height, config.input.width
    seeds = sample_seeds(0, 1, 0, 0, np.arange(NUM_IMAGES))
    table = torch.from_numpy(draw_table(seeds, height, width, config.augment)).to(device)
    saved: list[int] = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.nbytes)
        return tensor

    with device:
        network = DaalNetwork(
            config.network.model_copy(update={"weights": "none"}),
            num_source_ids=NUM_CLUSTERS if num_source else 0,
            num_clusters=NUM_CLUSTERS,
            domain_head=config.network.specific_branch and num_source > 0,
            input=config.input,
        ).train()
        labels = torch.arange(NUM_IMAGES - num_source)
        batch = TrainBatch(
            augment(torch.zeros((NUM_IMAGES, 3, height, width), dtype=torch.uint8), table),
            torch.arange(num_source),
            hard_label_weights(labels, NUM_CLUSTERS),
            labels,
        )
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            train_step(
                network,
                [batch],
                make_optimizer(network, config.adapt.optim),
                config.loss.model_copy(update={"triplet_weight": 0.0, "teacher_weight": 0.0}),
                torch.zeros(()),
                lambda flag: None,
                mixed_precision(device, config.mixed_precision),
            )
    weights = sum(p.nbytes for p in network.parameters())  # saved too, but not once an image
    return StepSize(
        num_parameters=sum(p.numel() for p in network.parameters()),
        num_features=network.num_features,
        bytes_per_image=max(0, sum(saved) - weights) // NUM_IMAGES,
    )
