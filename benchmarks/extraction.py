"""Extraction by a group of workers beside a loop in one process, in turn, in one run.

    python -m benchmarks.extraction [--num 10000] [--repeats 3] [--json]

The baseline decodes and runs the network in one process with all cores: a DataLoader with one
process, batches of 64. The group has two workers of one thread each and has started before; its
first extraction, which also decodes what is then kept, is a row of its own. Drawn images.
"""

import time
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.drawn import Group, Run, drawn_run
from benchmarks.tables import parse, parser_of, tell
from daal.config import Config
from daal.data.augment import normalise
from daal.data.images import decode
from daal.nn.network import DaalNetwork
from pipelines.run.artefacts import features_array
from pipelines.training.extract import extract
from pipelines.training.train_state import Weights

BATCH = 64
IMAGES_OF_ID = 12  # at the least, of a training identity


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("--num", type=int, default=10_000, help="crops")
    options.add_argument("--backbone", default="resnet18")
    options.add_argument("--size", type=int, nargs=2, default=[128, 64], help="height, width")
    options.add_argument("--repeats", type=int, default=2)
    given = parse(options)
    rows = measure(given.num, given.backbone, tuple(given.size), given.repeats)
    tell(given, "Extraction, images/s", rows)


def measure(
    num_images: int, backbone: str, size: tuple[int, int], repeats: int
) -> list[dict[str, Any]]:
    num_ids = -(-num_images // IMAGES_OF_ID)
    settings = [f"network.backbone={backbone}", f"max_train_images={num_images}"]
    with drawn_run(size, num_ids, settings) as run:
        images = run.images["target"]
        torch.manual_seed(0)
        network = DaalNetwork(run.config.network).eval()
        weights: Weights = {name: t.numpy() for name, t in network.state_dict().items()}

        def extract_by(group: Group, stage: str) -> np.ndarray[Any, Any]:
            blocks = extract(stage, images, group.config, weights, group.workers, group.pixels)
            return features_array(pa.concat_tables(blocks.values()))

        found: dict[str, list[float]] = {"one process": [], "decoded": [], "jpeg": []}
        with run.group(images="decoded") as kept, run.group(images="jpeg") as streamed:
            ways = {"decoded": kept, "jpeg": streamed}
            first = {}
            for way, group in ways.items():
                # Starts the group, and makes the kept pixels.
                started = time.monotonic()
                theirs = extract_by(group, "warm-up")
                first[way] = time.monotonic() - started
            for _ in range(repeats):
                started = time.monotonic()
                alone = one_process(run, network, run.config)
                found["one process"].append(time.monotonic() - started)
                assert np.allclose(alone, theirs, atol=1e-4), "features differ"
                for way, group in ways.items():
                    started = time.monotonic()
                    extract_by(group, way)
                    found[way].append(time.monotonic() - started)
    num = len(images.table)
    speeds = {way: num / median(seconds) for way, seconds in found.items()}
    return [
        {
            "name": f"{backbone} {size[0]}x{size[1]} {way}",
            "ratio": speeds[way] / speeds["one process"],
            "ours": speeds[way],
            "one_process": speeds["one process"],
            "first_s": first[way],
            "images": num,
        }
        for way in ways
    ]


class _Images(Dataset[Any]):
    def __init__(self, images: list[bytes], config: Config) -> None:
        self.images, self.size = images, config.input

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(decode(self.images[row], self.size.height, self.size.width))


@torch.inference_mode()
def one_process(run: Run, network: DaalNetwork, config: Config) -> np.ndarray[Any, Any]:
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = run.image_bytes("target")
    loader = DataLoader(_Images(images, config), batch_size=BATCH, num_workers=1)
    features = [network.extract(normalise(batch.permute(0, 3, 1, 2))).numpy() for batch in loader]
    return np.concatenate(features)


if __name__ == "__main__":
    main()
