"""Where training and extraction compute in bf16.

On CPUs with AMX, oneDNN (of PyTorch 2.15) takes other kernels, which on small feature maps read
memory that nothing was written to: results differ from run to run, or are not finite. The kernels
without AMX are right: ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16, from before the process's first
convolution. `pipelines.workers.ray_environment` sets it for commands and workers.
"""

import os

import torch


def mixed_precision(device: torch.device, wanted: bool) -> torch.autocast:
    """bf16 autocast where the device multiplies bf16 natively; does nothing elsewhere.

    Without it, all is float32. A GPU's convolutions would take TF32 by themselves, which has bf16's
    precision but for three bits, so that this process is told here whether they may.

    On a GPU it has no cache: a captured step (`daal.captured_step`) may not have one, and with it
    a weight that is used twice would have other gradients.
    """
    if device.type == "cpu":
        native = cpu_multiplies_bf16()
    else:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        torch.backends.cudnn.allow_tf32 = wanted
    return torch.autocast(
        device.type,
        torch.bfloat16,
        enabled=wanted and native,
        cache_enabled=device.type == "cpu",
    )


def cpu_multiplies_bf16() -> bool:
    """Whether this machine's CPUs have native bf16 that this process may rely on."""
    has = torch.cpu.get_capabilities()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    without_amx = limit not in ("", "ALL", "DEFAULT") and "AMX" not in limit
    return bool(has.get("avx512_bf16")) and (without_amx or not has.get("amx_bf16"))
