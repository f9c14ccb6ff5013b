"""The example of examples/ runs as it stands."""

import re
from pathlib import Path

from programs import python

ROOT = Path(__file__).parents[2]


def test_algorithm_1(tmp_path):
    # With more threads than idle cores, they mostly wait for each other.
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    given = ["--iterations=1", f"--out={tmp_path}"]
    done = python("examples/algorithm_1.py", *given, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("direct transfer: mAP ")
    assert re.match(r"iteration 1, [1-9]\d* clusters: mAP ", second)
