"""What lies between two iterations: from labels that are ready to the first training step.

    python -m benchmarks.iteration [--repeats 3] [--json]

The baseline starts a group of workers for each training, as a `TorchTrainer.fit()` in each
iteration would; ours keeps one group for the run. Both times are from handing over the labels
until rank 0 begins its first step (images ready, network and optimizer built). Twenty short fits
in a row show that nothing accumulates. Drawn images, ResNet-18 at 64x32, two workers.
"""

import time
from statistics import median
from typing import Any

from benchmarks.drawn import Group, drawn_run
from benchmarks.tables import parse, parser_of, tell
from pipelines.training.train_batch import Labels

SETTINGS = [
    "network.backbone=resnet18", "adapt.epochs=1", "adapt.steps_per_epoch=2",
    "adapt.batch_source=16", "adapt.batch_target=16",
]  # fmt: skip
NUM_CLUSTERS = 40


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--fits", type=int, default=20, help="fits in a row by one group")
    given = parse(options)
    rows = measure(given.repeats, given.fits)
    tell(given, "From labels to the first training step, seconds", rows)


def measure(repeats: int, num_fits: int) -> list[dict[str, Any]]:
    fresh: dict[str, list[float]] = {"decoded": [], "jpeg": []}
    next_one: dict[str, list[float]] = {"decoded": [], "jpeg": []}
    with drawn_run((64, 32), 40, SETTINGS) as run:
        labels = run.labels(NUM_CLUSTERS)
        for repeat in range(repeats):
            for images in fresh:
                with run.group(images=images) as group:
                    fresh[images].append(until_first_step(group, labels, f"fresh-{repeat}"))
                    next_one[images] += [
                        until_first_step(group, labels, f"next-{repeat}-{at}")
                        for at in range(num_fits if repeat == 0 else 3)
                    ]
    return [
        {
            "name": images,
            "ratio": median(next_one[images]) / median(fresh[images]),
            "next": median(next_one[images]),
            "fresh": median(fresh[images]),
            "slowest_next": max(next_one[images]),
            f"fit_{num_fits}": next_one[images][num_fits - 1],
        }
        for images in fresh
    ]


def until_first_step(group: Group, labels: Labels, stage: str) -> float:
    started = time.time()
    return group.adapt(stage, labels)["started"] - started


if __name__ == "__main__":
    main()
