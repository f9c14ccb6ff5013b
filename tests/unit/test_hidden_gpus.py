"""On a machine with GPUs the tests see none of them, unless they are asked for."""

import os
from pathlib import Path

import pytest
from programs import python

ROOT = Path(__file__).parents[2]
# Two GPUs, as Ray counts those of a machine; loaded before anything is collected.
MACHINE = """
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager as Nvidia

Nvidia.get_current_node_num_accelerators = staticmethod(lambda: 2)
Nvidia.get_current_node_accelerator_type = staticmethod(lambda: "H200")
"""
TEST = """
import sys

import torch
from ray._private.resource_and_label_spec import ResourceAndLabelSpec

def test_what_is_seen():
    node = ResourceAndLabelSpec().resolve(is_head=True)
    print("seen:", node.num_gpus, len(torch.cuda._parse_visible_devices()), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("given", "seen"),
    [([], "0 0"), (["-m", "gpu or not gpu"], "2 64")],
    ids=["ordinary", "asked for"],
)
def test_gpus_of_the_machine(given, seen, tmp_path):
    (tmp_path / "machine.py").write_text(MACHINE)
    (tmp_path / "test_inside.py").write_text(TEST)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}/tests:{ROOT}"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    plugins = ["-p", "machine", "-p", "conftest", "-p", "no:cacheprovider"]
    command = [
        "pytest",
        "-c",
        "pyproject.toml",
        "-s",
        *plugins,
        tmp_path / "test_inside.py",
        *given,
    ]
    done = python("-m", *command, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert f"seen: {seen}" in done.stderr, done.stderr
