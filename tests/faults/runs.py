"""The command `daal adapt` (or another) as a process of its own, which tests watch and kill."""

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tiny_run import recipe_of
from waiting import wait_until

from daal.config import Config
from pipelines.run.folder import RunFolder


@dataclass(frozen=True)
class Run:
    """A recipe on disk, and the folder that its run leaves."""

    recipe: Path
    folder: RunFolder

    def start(self, environment: dict[str, str], verb: str = "adapt") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", verb, str(self.recipe)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            # Tests run in a shell's background inherit that Ctrl-C is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def finish(self, environment: dict[str, str], verb: str = "adapt") -> None:
        process = self.start(environment, verb)
        stdout, stderr = process.communicate()
        assert process.returncode == 0, stdout + stderr

    def wait_for(self, stage: str, process: subprocess.Popen[str]) -> None:
        """Until the process has begun with the stage."""
        before = self._starts(stage)

        def has_begun() -> bool:
            if self._starts(stage) > before:
                return True
            assert process.poll() is None, process.communicate()
            return False

        wait_until(has_begun, f"{stage} isn't reached", pause=0.05)  # its stages are short

    def _starts(self, stage: str) -> int:
        lines = self.folder.lines("metrics.jsonl")
        return sum(line["stage"] == stage and line.get("state") == "started" for line in lines)

    def stages(self) -> list[str]:
        """Finished ones, as often as they were finished."""
        return [line["stage"] for line in self.folder.journal()]


def run_of(config: Config, out: str) -> Run:
    """A run in `out`, whose recipe lies beside the configured folder."""
    file = Path(f"{config.out}-{out.rpartition('/')[2]}.yaml")
    return Run(recipe_of(config.model_copy(update={"out": out}), file), RunFolder(out))
