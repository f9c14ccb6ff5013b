"""Where CPUs multiply bf16 natively, and how PyTorch is kept from kernels that go wrong there.

On CPUs with AMX, oneDNN (of PyTorch 2.15) takes other kernels, which on small feature maps read
memory that nothing was written to: results differ from run to run, or are not finite. The kernels
without AMX are right: ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16, from before the process's first
convolution. `pipelines.workers.ray_environment` sets it for commands and workers.
"""

import os

import torch


def multiplies_bf16() -> bool:
    """Whether this machine has native bf16 that this process may rely on."""
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("amx_bf16") and not _is_without_amx():
        return False
    return bool(capabilities.get("avx512_bf16"))


def _is_without_amx() -> bool:
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return limit not in ("", "ALL", "DEFAULT") and "AMX" not in limit
