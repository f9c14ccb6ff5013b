"""The guard's pretences are beside the benchmarks, which use them too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
