"""The example of examples/ runs as it stands."""

import re
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
    assert re.match(r"iteration 1, [1-9]\d* clusters: mAP ", second)
