"""How long each kind of interruption holds a run up, as a multiple of the stage that it hits.

    python -m benchmarks.recovery [--json]

An adaptation of drawn images with two workers, once in peace and once struck in four of its
stages. A stage's time is that from its first start to its end, so with a killed driver the new
start of the command counts. What doesn't grow with a stage, to start processes anew, is most of
it: the longer the stage, the smaller the multiple. The weights must be the same bytes.
"""

import json
import os
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.small_run import settings_in, start
from benchmarks.tables import json_lines, parse, parser_of, tell
from pipelines.workers.planned_faults import FAULTS

LONGER = ["pretrain.epochs=10", "adapt.epochs=10", "adapt.steps_per_epoch=20", "iterations=1"]
WORKERS = [
    {"stage": "pretrain", "step": 60, "rank": 1},  # amid an epoch
    {"stage": "pretrain/extract", "step": 2},
]
STRUCK = {
    "pretrain/train": "a worker killed",
    "pretrain/extract": "a worker killed",
    "iteration-01/estimate": "the task killed",
    "iteration-01/train": "the driver killed, its Ray with it; the same command at once",
}
WEIGHTS = "iteration-01/checkpoint/weights.safetensors"


def events(out: Path) -> list[dict[str, Any]]:
    with suppress(OSError):
        return json_lines(out / "metrics.jsonl")
    return []


def wait_for(out: Path, process: "subprocess.Popen[bytes]", **wanted: object) -> None:
    while not any(wanted.items() <= event.items() for event in events(out)):
        if process.poll() is not None:
            raise SystemExit(f"the run ended too soon; see {out}.log")
        time.sleep(0.05)


def end(process: "subprocess.Popen[bytes]", out: Path) -> None:
    if process.wait():
        raise SystemExit(f"exit code {process.returncode}; see {out}.log")


def kill_the_task(process: "subprocess.Popen[bytes]") -> None:
    """The one that makes pseudo-labels, as soon as it is there."""
    while True:
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if child.cmdline()[:1] == ["ray::pseudo-labels"]:
                    child.kill()
                    return
        time.sleep(0.01)


def seconds(out: Path) -> dict[str, float]:
    """From the first start of each stage to its end."""
    begun: dict[str, float] = {}
    for event in events(out):
        if event.get("state") == "started":
            begun.setdefault(event["stage"], event["time"])
    return {
        line["stage"]: line["started"] + line["seconds"] - begun[line["stage"]]
        for line in json_lines(out / "journal.jsonl")
    }


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("--folder", type=Path, help="keeps images and runs here")
    given = parse(options)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.folder or Path(scratch)).absolute()
        settings = settings_in(folder, 60, *LONGER)
        calm, struck = folder / "calm", folder / "struck"
        end(start(settings, calm), calm)

        driver = start(settings, struck, **{FAULTS: json.dumps(WORKERS)})
        wait_for(struck, driver, stage="iteration-01/estimate", state="started")
        kill_the_task(driver)
        wait_for(struck, driver, stage="iteration-01", epoch=5)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        end(start(settings, struck), struck)

        whole, held_up = seconds(calm), seconds(struck)
        rows = [
            {"name": stage, "what": what, "times the undisturbed stage": round(ratio, 2),
             "share of the run's time": round(whole[stage] / sum(whole.values()), 2)}
            for stage, what in STRUCK.items()
            for ratio in [held_up[stage] / whole[stage]]
        ]  # fmt: skip
        rows.append({
            "name": "all stages",
            "what": "all four",
            "times the undisturbed stage": round(sum(held_up.values()) / sum(whole.values()), 2),
            "share of the run's time": 1.0,
        })  # fmt: skip
        same = (struck / WEIGHTS).read_bytes() == (calm / WEIGHTS).read_bytes()
    tell(given, "Held up by", rows, same_bytes=same)
    if not same:
        raise SystemExit("other weights than the undisturbed run's")


if __name__ == "__main__":
    main()
