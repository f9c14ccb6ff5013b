"""How many CPUs this process may use, which may be fewer than the machine has."""

import os

import joblib


def available_cpus() -> int:
    """The smallest of the machine's CPUs, the process's affinity (taskset), its container's quota
    (cgroup), and what SLURM gave the job on this node; at least 1."""
    given = os.environ.get("SLURM_CPUS_ON_NODE", "")
    found = int(joblib.cpu_count())
    return max(1, min(found, int(given)) if given.isdigit() else found)
