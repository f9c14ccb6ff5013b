"""The example of examples/ runs as it stands."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_algorithm_1(tmp_path: Path) -> None:
    command = [sys.executable, "examples/algorithm_1.py", "--iterations=1", f"--out={tmp_path}"]
    said = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=True,
                          stdout=subprocess.PIPE, text=True).stdout  # fmt: skip
    first, second = said.splitlines()
    assert first.startswith("direct transfer: mAP ")
    assert second.startswith("iteration 1, ") and "0 clusters" not in second.replace("10 c", "")
