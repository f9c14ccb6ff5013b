"""Section "checks" of benchmarks/gpu_first.py: each row is right (`ok`) or not.

On a machine without a GPU the same checks run, most of them of the CPU against itself. Labels,
scores and augmentation are compared by the tests marked `gpu`.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.gpu_support import Bench
from benchmarks.gpu_training import Ours
from daal.captured_step import WARM_UP
from daal.nn.batch_norm import GroupBatchNorm2d

CPU = torch.device("cpu")
# Of the gradients' length: what fp32 and the kinks of 50 ReLU layers do.
GRADIENT_ERROR = 5e-3
LOSS_ERROR = 1e-4


def checks(bench: Bench) -> None:
    for check in CHECKS:
        name = f"check:{check.__name__.replace('_', ' ')}"
        if bench.is_late(name):
            continue
        try:
            with _exact():
                bench.add(name, **check(bench))
        except Exception as error:  # the next check may say more
            bench.add(name, ok=False, error=f"{type(error).__name__}: {error}"[:300])


@contextmanager
def _exact() -> Iterator[None]:
    """Without TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _gradients(ours: Ours) -> tuple[float, Tensor]:
    """Loss and all gradients (one vector, float64) of a step."""
    loss = float(ours.step().total)
    parameters = ours.network.parameters()
    return loss, torch.cat([p.grad.flatten().double().cpu() for p in parameters])  # type: ignore[union-attr]


def _closeness(ours: Ours, reference: Ours) -> dict[str, Any]:
    (loss, gradient_P), (expected, expected_P) = _gradients(ours), _gradients(reference)
    loss_error = abs(loss - expected) / abs(expected)
    gradient_error = float((gradient_P - expected_P).norm() / expected_P.norm())
    return {
        "ok": loss_error < LOSS_ERROR and gradient_error < GRADIENT_ERROR,
        "loss_error": loss_error,
        "gradient_error": gradient_error,
    }


def _step_as_on_cpu(bench: Bench) -> dict[str, Any]:
    ours = Ours(bench, bench.sizes.check, precise=True)
    reference = Ours(bench, bench.sizes.check, precise=True, device=CPU)
    return _closeness(ours, reference)


def _compiled_step(bench: Bench) -> dict[str, Any]:
    ours = Ours(bench, bench.sizes.check, precise=True, compiled=True)
    found = _closeness(ours, Ours(bench, bench.sizes.check, precise=True))
    torch._dynamo.reset()
    return found


def _captured_step(bench: Bench) -> dict[str, Any]:
    """Replayed as one CUDA graph: the bits of its kernels launched one by one."""
    if not bench.on_gpu:
        return {"left_out": "a CUDA graph needs a GPU"}
    states = []
    torch.use_deterministic_algorithms(True)
    try:
        for is_captured in (False, True):
            ours = Ours(bench, bench.sizes.check)
            step = ours.captured() if is_captured else ours.step
            for _ in range(WARM_UP + 3):
                step()
            states.append(_state(ours))
    finally:
        torch.use_deterministic_algorithms(False)
    return {"ok": _same_bits(*states)}


def _left_out_step(bench: Bench) -> dict[str, Any]:
    """Not finite: the fused update leaves weights and momentum as they were."""
    ours = Ours(bench, bench.sizes.check)
    ours.step()
    before = _state(ours)
    batch = ours.batch()
    batch.images_BCHW[0, 0, 0, 0] = torch.nan
    ours.update(batch)
    ours.step()
    return {"ok": float(ours.diverged) == 1 and _same_bits(_state(ours), before)}


def _state(ours: Ours) -> list[Tensor]:
    """Weights and momentum."""
    parameters = list(ours.network.parameters())
    state = [ours.optimizer.state[p]["momentum_buffer"] for p in parameters]
    return [tensor.detach().clone() for tensor in (*parameters, *state)]


def _same_bits(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def _step_that_never_waits(bench: Bench) -> dict[str, Any]:
    """torch raises an error where the host would wait for the GPU; CPUs can't be asked."""
    ours = Ours(bench, bench.sizes.check)
    ours.step()
    batch, ours.earlier = ours.batch(), None  # the look at the step before may wait for that one
    found: dict[str, Any] = {}
    for name, part in (("batch", ours.batch), ("step", lambda: ours.update(batch))):
        try:
            with _no_waiting() if bench.on_gpu else nullcontext():
                part()
            found[name] = True
        except RuntimeError as error:
            found[name] = f"waits: {error}"[:200]
    return {"ok": all(value is True for value in found.values()), **found}


@contextmanager
def _no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _deterministic_step(bench: Bench) -> dict[str, Any]:
    """Two trainings from the same start, to the bit; the ratio is what that costs."""
    plain = Ours(bench, bench.sizes.check)
    plain_s = bench.seconds({"plain": plain.step})["plain"]
    torch.use_deterministic_algorithms(True)
    try:
        states = []
        for _ in range(2):
            ours = Ours(bench, bench.sizes.check)
            for _ in range(3):
                ours.step()
            states.append(_state(ours))
        strict_s = bench.seconds({"strict": ours.step})["strict"]
    finally:
        torch.use_deterministic_algorithms(False)
    return {"ok": _same_bits(*states), "ratio": strict_s / plain_s}


def _group_batch_norm(bench: Bench) -> dict[str, Any]:
    """A group of one equals plain BatchNorm: GPUs have kernels of their own for it."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "nccl" if bench.on_gpu else "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=0,
            world_size=1,
        )
        try:
            errors = {
                name: _group_error(bench.device, dtype, layout)
                for name, dtype, layout in (
                    ("fp32", torch.float32, torch.contiguous_format),
                    ("channels_last", torch.float32, torch.channels_last),
                    ("bf16", torch.bfloat16, torch.channels_last),
                )
            }
        finally:
            dist.destroy_process_group()
    limits = {"fp32": 1e-4, "channels_last": 1e-4, "bf16": 3e-2}
    return {"ok": all(errors[name] < limit for name, limit in limits.items()), **errors}


def _group_error(device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> float:
    """The largest difference of results, gradients and statistics."""
    torch.manual_seed(0)
    values_BCHW, gradient_BCHW = (
        torch.randn(8, 64, 12, 4, device=device).to(dtype).contiguous(memory_format=layout)
        for _ in range(2)
    )
    plain = nn.BatchNorm2d(64, device=device)
    nn.init.uniform_(plain.weight)
    copied = nn.BatchNorm2d(64, device=device)
    copied.load_state_dict(plain.state_dict())
    assert dist.group.WORLD is not None
    results = []
    for norm in (plain, GroupBatchNorm2d(copied, dist.group.WORLD)):
        input_BCHW = values_BCHW.clone().requires_grad_()
        out_BCHW = norm(input_BCHW)
        out_BCHW.backward(gradient_BCHW)
        gradients = [input_BCHW.grad, *(parameter.grad for parameter in norm.parameters())]
        results.append([out_BCHW.detach(), *gradients, norm.running_mean, norm.running_var])
    return max(
        float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
        for ours, theirs in zip(*results, strict=True)
    )


CHECKS = [
    _step_as_on_cpu, _captured_step, _compiled_step, _left_out_step,
    _step_that_never_waits, _deterministic_step, _group_batch_norm,
]  # fmt: skip
