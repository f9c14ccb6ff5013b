"""bf16 on CPUs: not by AMX, whose convolutions give other numbers each time."""

import pytest
import torch
from programs import python

from daal.precision import cpu_multiplies_bf16

VARIABLE = "ONEDNN_MAX_CPU_ISA"


@pytest.mark.parametrize(
    ("has", "limit", "native"),
    [
        ({}, "", False),
        ({"avx512_bf16": True}, "", True),
        ({"avx512_bf16": True, "amx_bf16": True}, "", False),
        ({"avx512_bf16": True, "amx_bf16": True}, "AVX512_CORE_AMX", False),
        ({"avx512_bf16": True, "amx_bf16": True}, "avx512_core_bf16", True),
    ],
)
def test_amx_is_not_relied_on(has, limit, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setenv(VARIABLE, limit)
    assert cpu_multiplies_bf16() is native


def test_a_step_of_bf16_repeats_its_bits():
    """In a process of its own, as oneDNN is set up once."""
    code = (
        "import torch\n"
        "from pipelines.workers.ray_environment import set_for_process\n"
        "set_for_process()\n"
        "from daal.precision import mixed_precision\n"
        "from torchvision.models import resnet18\n"
        "torch.manual_seed(0)\n"
        "network = resnet18(weights=None).to(memory_format=torch.channels_last)\n"
        "images = torch.randn(16, 3, 64, 32).to(memory_format=torch.channels_last)\n"
        "sums = set()\n"
        "for _ in range(4):\n"
        "    network.zero_grad()\n"
        "    with mixed_precision(torch.device('cpu'), True):\n"
        "        out = network(images)\n"
        "    out.float().square().mean().backward()\n"
        "    sums.add(tuple(float(p.grad.double().sum()) for p in network.parameters()))\n"
        "print(len(sums))\n"
    )
    done = python("-c", code)
    assert done.stdout == "1\n", done.stdout + done.stderr
