"""Training on Ray beside a plain PyTorch loop, in turn, in one run.

    python -m benchmarks.training [--repeats 3] [--json]

Both train the same network with DDP over gloo, two processes of one thread each, on the same
batches. The baseline is what one would write without Ray: `torch.multiprocessing`, a DataLoader
with as many processes as there are trainers, SGD, a checkpoint each epoch. Steady images/s
leave out the first step and the checkpoints, whole ones nothing but the start of the processes.
`jpeg` decodes each image at each use, as the baseline does; `decoded` keeps pixels.
"""

import json
import os
import socket
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from benchmarks.drawn import Group, Run, drawn_run
from benchmarks.tables import parse, parser_of, tell
from cluster.soft_labels import soft_label_weights
from daal.config import Config
from daal.data.augment import augment, draw_table, sample_seeds
from daal.data.images import decode
from daal.data.plan import Plan
from daal.losses import total_loss
from pipelines.training.fit import class_labels
from pipelines.training.train_batch import Labels
from pipelines.training.train_loop import build_network

NUM_PROCESSES, NUM_CLUSTERS = 2, 40
SETTINGS = {
    "resnet18 64x32": ((64, 32), "resnet18", 32, 12),
    "resnet50 128x64": ((128, 64), "resnet50", 16, 4),
}


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("--networks", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    options.add_argument("--epochs", type=int, default=5)
    options.add_argument("--repeats", type=int, default=2)
    given = parse(options)
    rows = [row for name in given.networks for row in measure(name, given.epochs, given.repeats)]
    tell(given, "Training, images/s", rows)


def measure(name: str, epochs: int, repeats: int) -> list[dict[str, Any]]:
    size, backbone, batch, steps = SETTINGS[name]
    settings = [
        f"network.backbone={backbone}", f"adapt.epochs={epochs}", f"adapt.steps_per_epoch={steps}",
        f"adapt.batch_source={batch}", f"adapt.batch_target={batch}",
    ]  # fmt: skip
    with drawn_run(size, 60, settings) as run:
        labels = run.labels(NUM_CLUSTERS)
        with run.group(images="decoded") as kept, run.group(images="jpeg") as streamed:
            ways = {"decoded": kept, "jpeg": streamed}
            for group in ways.values():  # started, images read
                ours(group, labels, "warm-up")
            found: dict[str, list[tuple[float, float]]] = {"plain": [], **{way: [] for way in ways}}
            for repeat in range(repeats):
                found["plain"].append(plain(run, labels))
                for way, group in ways.items():
                    found[way].append(ours(group, labels, f"fit-{repeat}"))
    steady, whole = (
        {way: median([speeds[at] for speeds in found[way]]) for way in found} for at in (0, 1)
    )
    return [
        {
            "name": f"{name} {way}",
            "ratio": steady[way] / steady["plain"],
            "whole_ratio": whole[way] / whole["plain"],
            "steady": steady[way],
            "plain_steady": steady["plain"],
            "whole": whole[way],
            "plain_whole": whole["plain"],
        }
        for way in ways
    ]


def ours(group: Group, labels: Labels, stage: str) -> tuple[float, float]:
    """Steady and whole images/s of one fit by a group that has started."""
    times, fit = group.adapt(stage, labels), group.config.adapt
    num_steps = fit.epochs * (fit.steps_per_epoch or 0)
    batch = fit.batch_source + fit.batch_target
    steady = times["total"] - times["first_step"] - times["checkpoints"]
    return (num_steps - 1) * batch / steady, num_steps * batch / times["total"]


def plain(run: Run, labels: Labels) -> tuple[float, float]:
    """The same by two processes of PyTorch alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as scratch:
        images = {domain: run.image_bytes(domain) for domain in run.images}
        rows = class_labels(run.images["source"])[1]
        job = (run.config, labels, images, rows, port, Path(scratch))
        multiprocessing.spawn(_process, job, nprocs=NUM_PROCESSES)  # type: ignore[attr-defined]
        steady, whole = json.loads((Path(scratch) / "speeds.json").read_text())
    return steady, whole


class _Batches(Dataset[Any]):
    """Batch numbers in, decoded images and rows out."""

    def __init__(self, plan: Plan, rank: int, images: dict[str, list[bytes]], config: Config):
        self.plan, self.rank, self.images, self.size = plan, rank, images, config.input

    def __len__(self) -> int:
        return self.plan.num_steps

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        share = self.plan.batch(step).share(self.rank, NUM_PROCESSES)
        pixels = [
            decode(self.images[domain][row], self.size.height, self.size.width)
            for domain, rows in (("source", share.source), ("target", share.target))
            for row in rows
        ]
        return (
            torch.from_numpy(np.stack(pixels)),
            torch.tensor(share.source),
            torch.tensor(share.target),
        )


def _process(
    rank: int,
    config: Config,
    labels: Labels,
    images: dict[str, list[bytes]],
    source_rows: np.ndarray[Any, Any],
    port: int,
    folder: Path,
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=NUM_PROCESSES)
    fit = config.adapt
    assert labels.pseudo_labels_N is not None and labels.features_NC is not None
    target_rows = np.flatnonzero(labels.pseudo_labels_N >= 0)
    plan = Plan(
        config.seed, 1, fit.epochs, fit.batch_source, fit.batch_target, source_rows, target_rows,
        labels.pseudo_labels_N[target_rows], steps_per_epoch=fit.steps_per_epoch or 0,
    )  # fmt: skip
    network = build_network(config, labels, {}).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9, weight_decay=5e-4)
    source_labels, pseudo_labels, features, centroids = map(
        torch.tensor,
        (labels.source_N, labels.pseudo_labels_N, labels.features_NC, labels.centroids_KC),
    )
    loader = DataLoader(
        _Batches(plan, rank, images, config), batch_size=None, num_workers=1, prefetch_factor=2
    )
    steady = first = saving = 0.0
    begun = time.monotonic()
    for step, (pixels, source, target) in enumerate(loader):
        samples = torch.cat([source, target + len(source_labels)]).numpy()
        seeds = sample_seeds(0, 1, 0, step, samples)
        table = draw_table(seeds, config.input.height, config.input.width, config.augment)
        batch = augment(pixels.permute(0, 3, 1, 2), torch.from_numpy(table))
        weights = soft_label_weights(
            features[target], centroids, pseudo_labels[target], form="normalized"
        )
        out = model(batch, len(source))
        terms = total_loss(
            out.source_logits_BS, source_labels[source], out.target_logits_BK, weights,
            out.domain_logits_B2, (torch.arange(len(batch)) >= len(source)).long(),
        )  # fmt: skip
        optimizer.zero_grad()
        terms.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step == 0:
            first = time.monotonic() - begun
        if (step + 1) % plan.steps_per_epoch == 0:
            started = time.monotonic()
            if rank == 0:
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(state, folder / "checkpoint.pt")
            distributed.barrier()
            saving += time.monotonic() - started
    total = time.monotonic() - begun
    num_images = fit.batch_source + fit.batch_target
    steady = (plan.num_steps - 1) * num_images / (total - first - saving)
    if rank == 0:
        speeds = [steady, plan.num_steps * num_images / total]
        (folder / "speeds.json").write_text(json.dumps(speeds))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
