"""The example of examples/ runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_algorithm_1(tmp_path):
    command = [sys.executable, "examples/algorithm_1.py", "--iterations=1", f"--out={tmp_path}"]
    # With more threads than idle cores, they mostly wait for each other.
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    said = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    first, second = said.splitlines()
    assert first.startswith("direct transfer: mAP ")
    assert re.match(r"iteration 1, [1-9]\d* clusters: mAP ", second)
