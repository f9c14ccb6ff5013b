"""Whether the attention of a run on drawn images finds their people, by domain and iteration.

    python -m benchmarks.attention --run RUN [--run RUN ...] [--json]
    python -m benchmarks.attention [--seeds 3] [KEY=VALUE ...] [--json]
    python -m benchmarks.attention --limits [--json]

The second form runs `daal demo` with these settings, once with each seed. The third trains nothing:
it gives the AUC of the mask itself, averaged to maps of some sizes, which no attention of so many
places can exceed by much. Columns are the figures
of `pipelines.report.attention_figures` over 200 training images: the AUC against the person's mask
of A (weighted by energy), of the features, of the shared and of the specific map; the separation,
which is shared minus specific; A's standard deviation over an image; and the model's mAP.
"""

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

from benchmarks.small_run import scratch_folder
from benchmarks.tables import parse, parser_of, tell
from daal.drawn.domain_style import SOURCE, TARGET
from daal.drawn.domains import figure_mask
from daal.trained_model import load_trained
from pipelines.report.attention_and_clusters import drawn_figures
from pipelines.report.attention_figures import attention_figures
from pipelines.report.facts import read_facts
from pipelines.run.folder import RunFolder
from pipelines.run.stages import PRETRAIN


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("--run", action="append", default=[], help="a finished run's folder")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--limits", action="store_true")
    options.add_argument("settings", nargs="*")
    given = parse(options)
    if given.limits:
        tell(given, "AUC of the mask itself, averaged to so many places", limits())
        return
    with scratch_folder() as scratch:
        seeds = range(0 if given.run else given.seeds)
        made = [demo(Path(scratch) / f"seed-{seed}", seed, given.settings) for seed in seeds]
        rows = [row for run in [*given.run, *made] for row in figures_of(RunFolder(run))]
    tell(given, "The attention against masks of the drawn people", rows)


def limits() -> list[dict[str, Any]]:
    """A row for each domain, a column for each size of map."""
    rows = []
    for style in (SOURCE, TARGET):
        keys = [(pid, camid, 25) for pid in range(1, 31) for camid in range(1, 5)]
        masks_BHW = np.stack([figure_mask(style, *key) for key in keys])
        features_B1HW = torch.from_numpy(masks_BHW)[:, None].float()
        row: dict[str, Any] = {"name": style.name}
        for size in ((2, 1), (4, 2), (8, 4), (16, 8)):
            map_B1hw = adaptive_avg_pool2d(features_B1HW, size)
            found = attention_figures(map_B1hw, map_B1hw, map_B1hw, masks_BHW)
            row["x".join(map(str, size))] = found.features_auc
        rows.append(row)
    return rows


def demo(out: Path, seed: int, settings: list[str]) -> str:
    """`daal demo` in a process of its own; its folder."""
    command = [sys.executable, "-m", "pipelines.cli", "demo", "--out", str(out), f"seed={seed}"]
    subprocess.run([*command, "supervised_bound=false", *settings], check=True, env=os.environ)
    return str(out)


def figures_of(run: RunFolder) -> list[dict[str, Any]]:
    """A row for each model and domain."""
    facts, rows = read_facts(run), []
    for stage in [PRETRAIN, *facts.trained]:
        model = load_trained(Path(run.path(stage.file("checkpoint"))))
        scores = facts.scores.get(stage)
        for domain, dataset in facts.config.domains():
            found = drawn_figures(run, model, domain, dataset.root)
            assert found is not None, f"{dataset.root} is no folder of drawn images"
            rows.append({
                "name": f"{Path(run.base).name}: {stage.title}, {domain}",
                **asdict(found),
                "separation": found.separation,
                "mAP": None if scores is None else 100 * scores.map,
            })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
