"""CPUs of this process, of its affinity and of a container's quota."""

import os
from pathlib import Path

import pytest

from pipelines import available_cpus as module
from pipelines.available_cpus import available_cpus


@pytest.mark.parametrize(
    ("files", "affinity", "cpus"),
    [
        ({}, 4, 4),
        ({"cpu.max": "max 100000"}, 4, 4),
        ({"cpu.max": "150000 100000"}, 4, 2),
        ({"cpu.max": "1000 100000"}, 4, 1),
        ({"cpu.max": "800000 100000"}, 4, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4, 4),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 4, 3),
        ({"cpu.max": "nonsense"}, 3, 3),
    ],
)
def test_the_smaller_of_affinity_and_quota(
    files: dict[str, str],
    affinity: int,
    cpus: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(module, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)))
    assert available_cpus() == cpus


def test_this_process__as_narrow_as_it_is_made() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
