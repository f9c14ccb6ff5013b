"""The first minutes on a GPU: is it right, how fast, and what limits it.

    python -m benchmarks.gpu_first 1               is it right, and who waits for whom
    python -m benchmarks.gpu_first 2               how far from what the device can do
    python -m benchmarks.gpu_first 3               whole runs; this one needs Ray
    python -m benchmarks.gpu_first labels --points 1000000x64
    python -m benchmarks.gpu_first 1 2 3 --quick   tiny sizes, also on a CPU: does it run?

A phase is a list of sections, each with its share of 8, 9 or 6 minutes; what a section has not
begun by then is left out. A section can be called by its name, too:

    tests       the tests that are marked `gpu`: GPU against CPU
    checks      the step on the GPU against the CPU, compiled and captured against eager, BatchNorm
                of groups, skipped steps, steps that never wait for the device, deterministic steps
    steps       DAAL's step against a bare torchvision step: images/s, the host's time against the
                device's, and as one CUDA graph
    goal        the step beside a bare compiled ResNet
    parts       the kernels that take most of a step
    labels      pseudo-labels stage by stage, against the bare product of features
    evaluation  MSMT17's size against the bare product
    extraction  images/s against a bare ResNet
    cuml        cuML's DBSCAN against `components`, if cuML is there
    doctor      `daal doctor` with a GPU asked for
    runs        two small runs, with pixels on the device and with streamed images

All calls write into one file, gpu_first.json unless told otherwise: what a section finds takes the
place of what it found before. A section whose packages are missing is left out, and says which.
Each call prints what the figures so far decide. Ratios are our time over the baseline's, both
measured in turn in this process.

Nothing here needs an installation of DAAL: it runs from the repository's root. Exits with 1 if a
check fails or a section breaks.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

# cuBLAS reads it once; without it, there are no deterministic products.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

from benchmarks.gpu_support import Bench
from benchmarks.tables import parse, say, table

# Where each section is. They are imported late: a bare machine has the packages of some only.
SECTIONS = {
    "tests": "gpu_runs",
    "checks": "gpu_checks",
    "steps": "gpu_training",
    "goal": "gpu_training",
    "parts": "gpu_training",
    "extraction": "gpu_training",
    "labels": "gpu_features",
    "evaluation": "gpu_features",
    "cuml": "gpu_features",
    "doctor": "gpu_runs",
    "runs": "gpu_runs",
}
# Seconds after which a section begins nothing more.
PHASES = {
    "1": {"tests": 60, "checks": 200, "steps": 180},
    "2": {"goal": 150, "parts": 30, "labels": 120, "evaluation": 60, "extraction": 60},
    "3": {"doctor": 30, "runs": 240},
}
NO_LIMIT = 3600.0  # of sections that are called by their names

Found = dict[str, dict[str, Any]]  # by section: device, torch, seconds, rows; left_out; failed


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("what", nargs="*", help="1, 2 or 3, or names of sections; default: 1 2 3")
    options.add_argument("--quick", action="store_true", help="tiny sizes")
    options.add_argument("--points", type=points, nargs="+", help="NxD of section labels")
    options.add_argument("--budget", type=float, help="seconds for each section")
    options.add_argument("--json", action="store_true", help="one object instead of the tables")
    options.add_argument("--out", type=Path, default=Path("gpu_first.json"), help="that object")
    given = parse(options)
    wanted = plan(given.what or list(PHASES), options)

    bench = Bench(given)
    found: Found = read(given.out)
    for name, seconds in wanted.items():
        bench.say(f"\n==== {name} ====")
        found[name] = run(bench, name, given.budget if given.budget is not None else seconds)
        write(given.out, found)  # whatever becomes of the next section
        rows = found[name]["rows"]
        bench.say(table(rows) if rows else "")
    whole = write(given.out, found)
    bench.say("\n==== what this decides ====\n" + "\n".join(whole["decides"]))
    if given.json:
        say(given, json.dumps(whole))
    sys.exit(any(is_bad(found[name]) for name in wanted))


def points(text: str) -> tuple[int, int]:
    """NxD."""
    num, dim = text.split("x")
    return int(num), int(dim)


def plan(what: list[str], options: argparse.ArgumentParser) -> dict[str, float]:
    """Sections in their order, with the seconds of each."""
    wanted: dict[str, float] = {}
    for each in what:
        if each in PHASES:
            wanted |= PHASES[each]
        elif each in SECTIONS:
            wanted[each] = NO_LIMIT
        else:
            options.error(f"{each!r} is neither a phase ({', '.join(PHASES)}) nor a section")
    return wanted


def run(bench: Bench, name: str, seconds: float) -> dict[str, Any]:
    """What a section found, as far as it came."""
    device = torch.cuda.get_device_name() if bench.on_gpu else "cpu"
    about = {"device": device, "torch": torch.__version__, "quick": bench.is_quick}
    begun = time.monotonic()
    bench.begin(seconds)
    end: dict[str, str] = {}
    try:
        getattr(import_module(f"benchmarks.{SECTIONS[name]}"), name)(bench)
    except ModuleNotFoundError as error:
        end["left_out"] = f"no package {error.name}; see docs/first_gpu.md"
    except Exception as error:  # the next section may say more
        end["failed"] = f"{type(error).__name__}: {error}"[:500]
    return {**about, "seconds": round(time.monotonic() - begun, 1), **end, "rows": bench.rows}


def is_bad(section: dict[str, Any]) -> bool:
    return "failed" in section or any(row.get("ok") is False for row in section["rows"])


def decisions(found: Found) -> Iterator[str]:
    """What is to be mended, what limits a step, and which goals are reached, a sentence each."""
    for name, section in found.items():
        if "left_out" in section:
            yield f"Section {name} was left out: {section['left_out']}."
        if "failed" in section:
            yield f"Section {name} BROKE, and is to be mended first: {section['failed']}."
        for row in section["rows"]:
            if row.get("ok") is False:
                why = next((row[key] for key in ("error", "said", "lacks") if row.get(key)), "")
                yield f"WRONG: {row['name'].strip()} ({why or 'see its row'}). Mend it first."
            if "bound_by" in row:
                yield f"{row['name']} is bound by the {row['bound_by']}."
            if "goal" in row:
                yield f"{row['name']}: {row['goal']}: {'reached' if row['reached'] else 'MISSED'}."
    untold = [name for name, each in found.items() if each["device"] == "cpu" or each["quick"]]
    if untold:
        yield (
            f"On a CPU or with tiny sizes: {', '.join(untold)}. Their figures say that the code "
            "runs, and nothing of a GPU."
        )


def read(path: Path) -> Found:
    """What earlier calls have found."""
    return dict(json.loads(path.read_text())["sections"]) if path.exists() else {}


def write(path: Path, found: Found) -> dict[str, Any]:
    """The object, which is whole at any time."""
    whole = {"sections": found, "decides": list(decisions(found))}
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(whole, indent=1) + "\n")
    new.replace(path)
    return whole


if __name__ == "__main__":
    main()
