"""What a GPU makes of DAAL: is it right, how fast, and how far from what the machine can do.

    python -m benchmarks.gpu                          all sections, from the repository's root
    python -m benchmarks.gpu --sections checks training --budget 500 --json --out gpu.json
    python -m benchmarks.gpu --sections labels --points 1000000x64
    python -m benchmarks.gpu --quick                  tiny sizes, also on a CPU: does it run?

Sections:

    checks      GPU against CPU, compiled against eager, BatchNorm of groups, skipped steps,
                steps that never wait for the device, deterministic steps
    training    images/s of DAAL's step on uint8 images against a bare torchvision step
    parts       where a step's time goes: by part and by kernel
    extraction  images/s, and what bf16 does to features and to mAP
    labels      pseudo-labels stage by stage, against the bare product of features
    evaluation  MSMT17's size against the bare product
    cuml        cuML's DBSCAN against `components`, if cuML is there

Ratios are our time over the baseline's, both measured in turn in this process. Floors are what
the bytes, or the floating-point operations, would take at the measured rates of a copy and of
a large bf16 product; how they are counted says `benchmarks/gpu_training.py`.

Beside PyTorch this needs torchvision, NumPy, SciPy, pydantic, numba, safetensors and threadpoolctl,
but neither Ray nor an installation of DAAL. Exits with 1 if a check fails.
"""

import argparse
import json
import os
import sys
from pathlib import Path

# cuBLAS reads it once; without it, there are no deterministic products.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

from benchmarks import gpu_checks, gpu_search, gpu_training
from benchmarks.gpu_support import Bench, table
from benchmarks.tables import parse, say

SECTIONS = {
    "checks": gpu_checks.checks,
    "training": gpu_training.training,
    "parts": gpu_training.parts,
    "extraction": gpu_training.extraction,
    "labels": gpu_search.labels,
    "evaluation": gpu_search.evaluation,
    "cuml": gpu_search.cuml,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    options.add_argument("--quick", action="store_true", help="tiny sizes")
    options.add_argument("--points", type=points, nargs="+", help="NxD of section labels")
    options.add_argument(
        "--budget", type=float, default=3600, help="seconds; what then isn't begun is left out"
    )
    options.add_argument("--json", action="store_true", help="one object instead of the tables")
    options.add_argument("--out", type=Path, help="write that object to a file")
    given = parse(options)

    bench = Bench(given)
    for name in given.sections:
        first = len(bench.rows)
        if not bench.is_late(name):
            bench.say(f"\n==== {name} ====")
            SECTIONS[name](bench)
        bench.say(table(bench.rows[first:]))
    found = {
        "device": torch.cuda.get_device_name() if bench.on_gpu else "cpu",
        "torch": torch.__version__,
        "rows": bench.rows,
    }
    if given.out:
        given.out.write_text(json.dumps(found, indent=1))
    if given.json:
        say(given, json.dumps(found))
    sys.exit(any(row.get("ok") is False for row in bench.rows))


def points(text: str) -> tuple[int, int]:
    """NxD."""
    num, dim = text.split("x")
    return int(num), int(dim)


if __name__ == "__main__":
    main()
