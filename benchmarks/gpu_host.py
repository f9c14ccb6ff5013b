"""Sections of benchmarks/gpu_first.py on the step as a whole: what the host costs, and the goal.

The host issues a step's kernels one by one. Where that takes longer than the device needs for them,
a faster device changes nothing, and one CUDA graph of the whole step does.
"""

from collections.abc import Callable

import torch

from benchmarks.gpu_support import Bench, Row, Shape
from benchmarks.gpu_training import Bare, Ours
from daal.captured_step import WARM_UP
from daal.losses import LossTerms


def host(bench: Bench) -> None:
    """Of each shape: the step as it is, its first part (augmentation and Eq. 4), and one graph."""
    for shape in bench.sizes.hosted:
        if not bench.is_late(f"host {shape}"):
            _host(bench, shape)


def _host(bench: Bench, shape: Shape) -> None:
    ours = Ours(bench, shape)
    found: Row = bench.host_and_device(ours.step)
    ratio = None
    found |= {f"batch_{name}": ms for name, ms in bench.host_and_device(ours.batch).items()}
    if bench.on_gpu:
        try:
            step = _after_its_capture(Ours(bench, shape))
        except RuntimeError as error:
            found["graph"] = f"not captured: {error}"[:300]
        else:
            graph = bench.host_and_device(step)
            found |= {f"graph_{name}": ms for name, ms in graph.items()}
            ratio = graph["steady_ms"] / found["steady_ms"]
    else:
        found["graph"] = "a CUDA graph needs a GPU"
    bench.add(f"host {shape}", ratio, **found)


def _after_its_capture(ours: Ours) -> Callable[[], LossTerms]:
    step = ours.captured()
    for _ in range(WARM_UP + 1):
        step()
    return step


def goal(bench: Bench) -> None:
    """The step beside a bare compiled ResNet, most telling ways first. `ratio`: ours over bare."""
    shape = bench.sizes.goal
    bare = Bare(bench, shape, compiled=True)
    for way in ("eager", "captured", "compiled"):
        name = f"goal {shape} {way}"
        if bench.is_late(name):
            continue
        if way == "captured" and not bench.on_gpu:
            bench.add(name, left_out="a CUDA graph needs a GPU")
            continue
        ours = Ours(bench, shape, compiled=way == "compiled")
        try:
            step = _after_its_capture(ours) if way == "captured" else ours.step
            took = bench.seconds({"ours": step, "bare": bare.step})
        except RuntimeError as error:  # not enough memory, or no capture
            bench.add(name, left_out=f"{type(error).__name__}: {error}"[:300])
            continue
        bench.add(
            name,
            took["ours"] / took["bare"],
            images_per_s=shape.batch / took["ours"],
            bare_images_per_s=shape.batch / took["bare"],
            of_bare=took["bare"] / took["ours"],
        )
        del ours, step
        if bench.on_gpu:
            torch.cuda.empty_cache()
    torch._dynamo.reset()
