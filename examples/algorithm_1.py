"""Algorithm 1 of the paper from top to bottom, in one process and without Ray.

    python examples/algorithm_1.py [--iterations 2] [--out FOLDER]

It draws two small domains, trains on the labelled one and adapts to the other, whose identities it
only looks at to print scores. `daal adapt` (`pipelines/adapt.py`) calls the same functions;
it adds several GPUs, runs that resume, and sets that don't fit into memory.

Shapes: N images, B of them in a batch, C channels of a feature, K clusters.
"""

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.estimate import PseudoLabels, estimate_pseudo_labels
from cluster.soft_labels import soft_label_weights
from daal.config import AugmentConfig, ClusterConfig, NetworkConfig
from daal.data.augment import augment, draw_table, normalise, sample_seeds
from daal.data.images import decode
from daal.data.layouts import load_records
from daal.data.plan import Plan
from daal.data.records import Split, of_split
from daal.drawn.domains import draw_domains
from daal.evaluation import evaluate
from daal.losses import total_loss
from daal.nn.network import DaalNetwork

SIZE = HEIGHT, WIDTH = 64, 32
NETWORK = NetworkConfig(backbone="resnet18", weights="none", last_stride=1, identity_head="unit")
CLUSTER = ClusterConfig(k1=8, k2=3, eps_rule="fixed", eps=0.5)
AUGMENT = AugmentConfig(pad=4, erase=0.0)


class Images(NamedTuple):
    pixels_NCHW: Tensor  # uint8
    pids_N: NDArray[np.int64]
    camids_N: NDArray[np.int64]


def load(root: Path, split: Split) -> Images:
    """All images of one split of a data set in Market-1501's layout."""
    records = of_split(load_records("market1501", root), split)
    pixels = [decode((root / path).read_bytes(), *SIZE) for path in records["path"].to_pylist()]
    pids, camids = (records[name].to_numpy().astype(np.int64) for name in ("pid", "camid"))
    return Images(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), pids, camids)


@torch.inference_mode()
def extract(network: DaalNetwork, images: Images) -> NDArray[np.float32]:
    """Shared features (N, C): A(F) x F of Eq. 1, pooled, of unit length."""
    network.eval()
    return torch.cat([network.extract(normalise(x)) for x in images.pixels_NCHW.split(64)]).numpy()


def train(
    network: DaalNetwork,
    plan: Plan,
    source: Images,
    target: Images,
    rate: float,
    features_NC: NDArray[np.float32] | None = None,
    clusters: PseudoLabels | None = None,
) -> None:
    """Eq. 7 on the plan's batches. Without clusters the batches hold the source alone: Eq. 3."""
    classes_N = torch.from_numpy(np.unique(source.pids_N, return_inverse=True)[1])
    optimizer = torch.optim.Adam(network.parameters(), rate, weight_decay=5e-4)
    network.train()
    for step in range(plan.num_steps):
        batch, epoch = plan.batch(step), plan.epoch_of(step)
        ids_B = np.concatenate([batch.source, len(classes_N) + batch.target])
        seeds_B = sample_seeds(plan.seed, plan.iteration, epoch, step, ids_B)
        table = torch.from_numpy(draw_table(seeds_B, HEIGHT, WIDTH, AUGMENT))
        pixels = torch.cat([source.pixels_NCHW[batch.source], target.pixels_NCHW[batch.target]])
        output = network(augment(pixels, table), num_source=len(batch.source))
        weights_TK = None
        if features_NC is not None and clusters is not None:  # Eq. 4
            weights_TK = soft_label_weights(
                torch.from_numpy(features_NC[batch.target]),
                torch.from_numpy(clusters.centroids),
                torch.from_numpy(clusters.labels[batch.target]),
                form="normalized",
            )
        loss = total_loss(
            output.source_logits_BS,
            classes_N[batch.source],
            output.target_logits_BK,
            weights_TK,
            output.domain_logits_B2,
            domains_B=torch.arange(len(ids_B)) >= len(batch.source),
        )
        optimizer.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--iterations", type=int, default=2)
    options.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "algorithm_1")
    given = options.parse_args()
    draw_domains(given.out, num_train_ids=30, num_test_ids=15, images_per_camera=2, size=SIZE)
    source, target = (load(given.out / domain, "train") for domain in ("source", "target"))
    query, gallery = (load(given.out / "target", split) for split in ("query", "gallery"))
    source_rows, no_rows = np.arange(len(source.pids_N)), np.empty(0, np.int64)
    num_ids = len(np.unique(source.pids_N))

    def show(what: str, network: DaalNetwork) -> None:
        query_NC, gallery_NC = extract(network, query), extract(network, gallery)
        scores = evaluate(
            query_NC, query.pids_N, query.camids_N, gallery_NC, gallery.pids_N, gallery.camids_N
        )
        print(f"{what}: mAP {scores.map:.1%}, Rank-1 {scores.rank(1):.1%}", flush=True)

    torch.manual_seed(0)
    network = DaalNetwork(NETWORK, num_ids)
    plan = Plan(0, 0, 4, 32, 0, source_rows, no_rows, no_rows)
    train(network, plan, source, target, rate=1e-3)  # line 1
    show("direct transfer", network)
    for iteration in range(1, given.iterations + 1):  # line 2
        features_NC = extract(network, target)  # line 3
        clusters = estimate_pseudo_labels(features_NC, CLUSTER)  # lines 4 and 5
        pretrained = network.state_dict()
        network = DaalNetwork(NETWORK, num_ids, clusters.num_clusters, domain_head=True)
        network.load_matching(pretrained)
        network.target_head.start_from(torch.from_numpy(clusters.centroids))
        inside = np.flatnonzero(clusters.labels >= 0)  # outliers are left out
        plan = Plan(0, iteration, 2, 16, 16, source_rows, inside, clusters.labels[inside])
        train(network, plan, source, target, 3.5e-4, features_NC, clusters)  # line 6
        show(f"iteration {iteration}, {clusters.num_clusters} clusters", network)


if __name__ == "__main__":
    main()
