"""Commands that measure: `python -m benchmarks.NAME`."""

from pipelines.workers.ray_environment import set_for_process

set_for_process()  # before a benchmark imports Ray
