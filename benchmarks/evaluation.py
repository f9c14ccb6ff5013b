"""What scoring a retrieval costs beside the bare product of its features, and in memory.

    python -m benchmarks.evaluation                      11,659 x 82,161 x 2,048, as in MSMT17
    python -m benchmarks.evaluation --queries 2000 --gallery 20000 --dim 256

Features are drawn: identities in 48 dimensions, a shift for each of 15 cameras, rotated into
`--dim` dimensions, with noise; a tenth of the gallery are distractors. Of the bad model they are
noise alone, so that matches lie anywhere in the ranking. The baseline of both is the bare fp32
matrix product of the same features, in blocks that are thrown away, by NumPy's BLAS (on GPUs
torch), measured in turn with ours. Memory is that
of this process above the features (PSS). `--json` prints one object instead of the table.
"""

import argparse
import time
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.pseudo_labels import shared_memory_bytes, watched_memory
from benchmarks.tables import parse, parser_of, tell
from daal.evaluation import EvaluationResult, evaluate

ROWS = 1024
SPREAD = 0.8


class Side(NamedTuple):
    features: torch.Tensor
    pids: torch.Tensor
    camids: torch.Tensor


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("--queries", type=int, default=11_659)
    options.add_argument("--gallery", type=int, default=82_161)
    options.add_argument("--dim", type=int, default=2048)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--device", default="cpu")
    given = parse(options)

    rows = []
    for name, signal in (("usable model", 1.0), ("bad model", 0.0)):
        query, gallery = draw(given, signal)
        rows.append(measure(name, query, gallery, given))
        del query, gallery
    tell(given, f"{given.queries} queries x {given.gallery} images x {given.dim} dimensions", rows)


def draw(given: argparse.Namespace, signal: float, seed: int = 0) -> tuple[Side, Side]:
    """Features of length 1, float32, with pids from 1 (0 are distractors) and 15 cameras."""
    rng = np.random.default_rng(seed)
    num_pids = max(2, given.gallery // 27)
    directions = rng.standard_normal((num_pids, 48), np.float32)
    cameras = rng.standard_normal((15, 48), np.float32)
    rotation = rng.standard_normal((48, given.dim), np.float32) / np.float32(np.sqrt(48))

    def side(num_images: int, distractors: float) -> Side:
        pids = rng.integers(1, num_pids + 1, num_images)
        camids = rng.integers(0, 15, num_images)
        latent = directions[pids - 1] + 0.3 * cameras[camids]
        latent += SPREAD * rng.standard_normal(latent.shape, np.float32)
        lost = rng.random(num_images) < distractors
        latent[lost] = rng.standard_normal((int(lost.sum()), 48), np.float32)
        pids[lost] = 0
        features = np.empty((num_images, given.dim), np.float32)
        for start in range(0, num_images, 10_000):
            some = features[start : start + 10_000]
            rng.standard_normal(out=some, dtype=np.float32)
            if signal:
                some *= 0.3
                some += latent[start : start + 10_000] @ rotation
            some /= np.linalg.norm(some, axis=1, keepdims=True)
        return Side(
            *(torch.from_numpy(array).to(given.device) for array in (features, pids, camids))
        )

    return side(given.queries, 0.0), side(given.gallery, 0.1)


def measure(name: str, query: Side, gallery: Side, given: argparse.Namespace) -> dict[str, Any]:
    few = Side(*(some[:256] for some in query))
    evaluate(*few, *gallery)  # start the libraries' threads
    runs = []
    for _ in range(given.repeats):
        product = seconds(lambda: multiply(query, gallery), given)
        before = shared_memory_bytes()
        with watched_memory() as peak:
            found: list[EvaluationResult] = []
            wall = seconds(lambda found=found: found.append(evaluate(*query, *gallery)), given)
        runs.append((wall, product, (peak[0] - before) / 1e9))
    # The repeat with the median ratio to the product, except for the largest peak.
    wall, product, _ = sorted(runs, key=lambda run: run[0] / run[1])[len(runs) // 2]
    return {
        "name": name, "ratio": wall / product, "baseline_s": product, "seconds": wall,
        "map": found[0].map,
        "peak_above_features_gb": max(run[-1] for run in runs),
    }  # fmt: skip


def seconds(work: Any, given: argparse.Namespace) -> float:
    def wait() -> None:
        if given.device != "cpu":
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def multiply(query: Side, gallery: Side) -> None:
    for start in range(0, len(query.features), ROWS):
        block = query.features[start : start + ROWS]
        if block.is_cuda:
            block @ gallery.features.T
        else:
            block.numpy() @ gallery.features.numpy().T


if __name__ == "__main__":
    main()
