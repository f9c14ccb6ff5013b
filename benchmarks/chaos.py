"""One adaptation whose processes are killed at random, against the same one undisturbed.

    python -m benchmarks.chaos [--kills 50] [--seed 0] [--folder DIR] [--json]

What is killed are real processes of the run: its driver, a Ray Train worker, or any other of its
Ray's processes that do its work (tasks, decoders, the job queue, Ray Train's controller). A run
that ends with an error is started again by the same command. In the end its weights must be those
of the undisturbed run, byte for byte, and no finished stage may have been run twice. Exits with 1
if not.
"""

import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.small_run import settings_in, start
from benchmarks.tables import json_lines, parse, parser_of, tell

ITERATIONS = 20  # long enough for fifty kills
LAST = f"iteration-{ITERATIONS:02d}/checkpoint/weights.safetensors"
SETTINGS = ["pretrain.epochs=6", "adapt.epochs=3", "adapt.steps_per_epoch=6",
            f"iterations={ITERATIONS}"]  # fmt: skip
# Driver, worker, other: as often as machines might lose them, not as they are numbered.
VICTIMS = {"driver": 3, "worker": 4, "other": 3}
PAUSE_SECONDS = 1.0, 10.0  # from one kill to the next, at least
PATIENCE_SECONDS = 3600  # for one start of the driver


@dataclass
class Run:
    """A run's folder and how it went."""

    settings: list[str]
    out: Path
    starts: int = 0
    exit_codes: Counter[int] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)

    def finish(self, killer: "Killer | None" = None) -> float:
        """Start the command until it has done its work; returns the seconds this took."""
        began = time.monotonic()
        while True:
            self.starts += 1
            driver = start(self.settings, self.out, RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.5")
            if killer is not None:
                killer.kill_processes_of(driver, self)
            self.exit_codes[code := driver.wait(PATIENCE_SECONDS)] += 1
            if code == 0:
                return time.monotonic() - began
            if code not in (-signal.SIGKILL, 6):
                raise SystemExit(f"exit code {code}; see {self.out}.log")

    def stages(self) -> list[str]:
        return [line["stage"] for line in json_lines(self.out / "journal.jsonl")]


@dataclass
class Killer:
    """Ends processes of a run at random, `left` times."""

    rng: random.Random
    left: int

    def kill_processes_of(self, driver: "subprocess.Popen[bytes]", run: Run) -> None:
        """Until the driver has ended, or `left` kills are done."""
        while self.left and not _ended(driver, self.rng.uniform(*PAUSE_SECONDS)):
            kind = self.rng.choices(list(VICTIMS), list(VICTIMS.values()))[0]
            while not (victims := _victims(kind, driver.pid)) and not _ended(driver, 0.3):
                pass  # none of this kind has started yet
            if victims:
                os.kill(self.rng.choice(victims), signal.SIGKILL)
                run.kills[kind] += 1
                self.left -= 1


def _ended(driver: "subprocess.Popen[bytes]", seconds: float) -> bool:
    try:
        driver.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _victims(kind: str, driver: int) -> list[int]:
    """The driver, or processes of its Ray that do its work: Ray Train's workers, or all others."""
    if kind == "driver":
        return [driver]
    found: dict[str, list[int]] = {"worker": [], "other": []}
    for process in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if title.startswith("ray::RayTrainWorker"):
                found["worker"].append(process.pid)
            elif title.startswith("ray::") and "Agent" not in title and "IDLE" not in title:
                found["other"].append(process.pid)
    return found[kind]


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--folder", type=Path, help="keeps images and runs here")
    given = parse(options)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.folder or Path(scratch)).absolute()
        settings = settings_in(folder, 30, *SETTINGS)
        undisturbed, killed = (Run(settings, folder / name) for name in ("undisturbed", "killed"))
        seconds = undisturbed.finish()
        killer = Killer(random.Random(given.seed), given.kills)  # noqa: S311  no secret
        ratio = killed.finish(killer) / seconds
        row = {
            "name": "killed",
            "kills": killed.kills.total(),
            **{f"of {kind}": killed.kills[kind] for kind in VICTIMS},
            "starts": killed.starts,
            "time_x": round(ratio, 1),
            "stages": len(killed.stages()),
            "twice": len(killed.stages()) - len(set(killed.stages())),
            "same bytes": (killed.out / LAST).read_bytes() == (undisturbed.out / LAST).read_bytes(),
        }
    tell(given, "One adaptation, killed at random", [row])
    if killer.left or row["twice"] or not row["same bytes"]:
        raise SystemExit(
            f"not as promised; {killer.left} kills were left when it was done" if killer.left else 1
        )


if __name__ == "__main__":
    main()
