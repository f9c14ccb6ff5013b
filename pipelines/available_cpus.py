"""How many CPUs this process may use, which is often fewer than the machine has."""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def available_cpus() -> int:
    """CPUs of this process: its affinity (taskset, SLURM), and at most its cgroup's quota
    (containers), rounded up; at least 1."""
    affinity = len(os.sched_getaffinity(0))
    return max(1, min(affinity, math.ceil(_quota(CGROUPS) or affinity)))


def _quota(root: Path) -> float | None:
    """CPUs that a container's cgroup, mounted at `root`, is allowed; None without a limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text()  # version 1
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        cpus = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max" is no limit
        return None
    return cpus if cpus > 0 else None  # -1 is none either
