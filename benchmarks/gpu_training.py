"""Sections of benchmarks/gpu_first.py on the network: the step, its kernels, extraction.

DAAL's step is all that a worker does for a batch that is on its device: uint8 images ->
augmentation, Eq. 4's weights, forward and Eq. 7 through DAAM, backward, finite check, update. The
baseline's is a bare torchvision ResNet on normalised tensors that are there already:
forward, cross entropy, backward, fused SGD. Both in bf16 autocast and channels_last.

The host issues a step's kernels one by one. Where that takes longer than the device needs for them,
a faster device changes nothing, and one CUDA graph of the whole step does.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.autograd.profiler_util import DeviceType  # type: ignore[attr-defined]
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_support import Bench, Shape
from cluster.soft_labels import soft_label_weights
from daal.captured_step import WARM_UP, CapturedStep, CudaGraph
from daal.config import AugmentConfig, LossConfig, NetworkConfig, OptimConfig
from daal.data.augment import augment, draw_table, normalise, sample_seeds
from daal.host_copy import HostCopy
from daal.losses import LossTerms
from daal.nn.network import DaalNetwork
from daal.optimizer import make_optimizer
from daal.precision import mixed_precision
from daal.step import TrainBatch, train_step

OPTIM = OptimConfig()
OF_BARE, IMAGES_PER_S = 0.85, 3000.0  # of the step, at 384x128 and batch 256
NEARLY = 0.9  # of the device's time: a host that takes so long holds it up


class Pixels(NamedTuple):
    """What changes from step to step."""

    images_BHWC: Tensor
    table_BX: Tensor


class Ours:
    """DAAL's step; the same seed gives the same network and images on any device."""

    def __init__(
        self,
        bench: Bench,
        shape: Shape,
        *,
        compiled: bool = False,
        precise: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self.device = device or bench.device
        sizes, half = bench.sizes, shape.batch // 2
        torch.manual_seed(0)
        config = NetworkConfig(backbone=sizes.backbone, weights="none")
        network = DaalNetwork(config, sizes.num_ids, sizes.num_clusters, domain_head=True)
        centroids_KC = torch.randn(sizes.num_clusters, network.num_features)
        labels_S = torch.randint(sizes.num_ids, (half,))
        pseudo_labels_T = torch.randint(sizes.num_clusters, (half,))
        images_BHWC = torch.randint(
            256, (shape.batch, shape.height, shape.width, 3), dtype=torch.uint8
        )
        self.host_images_BHWC = images_BHWC.pin_memory() if bench.on_gpu else images_BHWC
        self.network = network.to(self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.network, OPTIM)
        seeds_B = sample_seeds(0, 0, 0, 0, np.arange(shape.batch))
        drawn_BX = draw_table(seeds_B, shape.height, shape.width, AugmentConfig())
        images_BHWC, table_BX, self.labels_S, self.pseudo_labels_T, self.centroids_KC = (
            tensor.to(self.device)
            for tensor in (
                images_BHWC, torch.from_numpy(drawn_BX), labels_S, pseudo_labels_T,
                F.normalize(centroids_KC),
            )
        )  # fmt: skip
        self.pixels = Pixels(images_BHWC, table_BX)
        self.features_TC = self.centroids_KC[self.pseudo_labels_T]
        self.autocast = mixed_precision(self.device, wanted=not precise)
        self.diverged = torch.zeros((), device=self.device)
        self.earlier: HostCopy | None = None
        self.agree: Callable[[Tensor], None] = lambda flag: None
        if compiled:
            self.network.compile(backend=bench.compiler)

    def batch(self, pixels: Pixels | None = None) -> TrainBatch:
        images_BHWC, table_BX = pixels or self.pixels
        return TrainBatch(
            augment(images_BHWC.permute(0, 3, 1, 2), table_BX),
            self.labels_S,
            soft_label_weights(
                self.features_TC, self.centroids_KC, self.pseudo_labels_T, 0.9, "normalized", 1e-3
            ),
        )

    def update(self, batch: TrainBatch) -> LossTerms:
        terms = self._train(batch)
        self._look_at_the_step_before()
        return terms

    def step(self) -> LossTerms:
        return self.update(self.batch())

    def step_from_host(self) -> LossTerms:
        images_BHWC = self.host_images_BHWC.to(self.device, non_blocking=True)
        return self.update(self.batch(Pixels(images_BHWC, self.pixels.table_BX)))

    def captured(self) -> Callable[[], LossTerms]:
        """`step` as one CUDA graph, which is captured after WARM_UP calls; needs a GPU.

        A call raises RuntimeError if it can't be captured.
        """

        def take(parts: Sequence[Pixels]) -> LossTerms:
            return self._train(self.batch(*parts))

        def refuse(error: RuntimeError) -> None:
            raise error

        replayed = CapturedStep(take, self.device, CudaGraph(), WARM_UP, refuse)

        def step() -> LossTerms:
            terms = replayed([self.pixels])
            self._look_at_the_step_before()
            return terms

        return step

    def _train(self, batch: TrainBatch) -> LossTerms:
        return train_step(
            self.network, [batch], self.optimizer, LossConfig(), self.diverged, self.agree,
            self.autocast,
        )  # fmt: skip

    def _look_at_the_step_before(self) -> None:
        """As the training loop does, so that the host is at most a step ahead."""
        if self.earlier is not None:
            float(self.earlier)
        self.earlier = HostCopy(self.diverged)


class Bare:
    """A torchvision ResNet, as plain and as fast as PyTorch's own parts make it."""

    def __init__(self, bench: Bench, shape: Shape, compiled: bool = False) -> None:
        network = getattr(torchvision.models, bench.sizes.backbone)(num_classes=bench.sizes.num_ids)
        self.network = network.to(bench.device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=True
        )
        self.images_BCHW = torch.randn(
            shape.batch, 3, shape.height, shape.width, device=bench.device
        ).contiguous(memory_format=torch.channels_last)
        self.labels_B = torch.randint(bench.sizes.num_ids, (shape.batch,), device=bench.device)
        self.autocast = mixed_precision(bench.device, wanted=True)
        if compiled:
            self.network.compile(backend=bench.compiler)

    def step(self) -> None:
        with self.autocast:
            logits_BK = self.network(self.images_BCHW)
        loss = F.cross_entropy(logits_BK.float(), self.labels_B)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def after_its_capture(ours: Ours) -> Callable[[], LossTerms]:
    """Raises RuntimeError if the step can't be captured."""
    step = ours.captured()
    for _ in range(WARM_UP + 1):
        step()
    return step


# ---- Sections ---------------------------------------------------------------------------


def steps(bench: Bench) -> None:
    for shape in bench.sizes.steps_of:
        name = f"step {shape}"
        if bench.is_late(name):
            continue
        try:
            _step(bench, name, shape)
        except torch.OutOfMemoryError:
            bench.add(name, left_out="not enough memory")
        if bench.on_gpu:
            torch.cuda.empty_cache()


def _step(bench: Bench, name: str, shape: Shape) -> None:
    ours, bare = Ours(bench, shape), Bare(bench, shape)
    took = bench.seconds({"ours": ours.step, "bare": bare.step, "from host": ours.step_from_host})
    clocks = bench.host_and_device(ours.step)
    graph: dict[str, object] = {"graph": "needs a GPU"}
    device_ms = clocks["alone_ms"]
    if bench.on_gpu:
        try:
            step = after_its_capture(Ours(bench, shape))
            # A graph's time is the device's alone.
            graph = {"graph_ms": (device_ms := bench.host_and_device(step)["steady_ms"])}
        except RuntimeError as error:
            graph = {"graph": f"not captured: {error}"[:300]}
    with FlopCounterMode(display=False) as counter:
        ours.step()
    rate = counter.get_total_flops() / took["ours"]
    bench.add(
        name,
        took["ours"] / took["bare"],
        images_per_s=shape.batch / took["ours"],
        bare_images_per_s=shape.batch / took["bare"],
        from_host_images_per_s=shape.batch / took["from host"],
        **clocks,
        **graph,
        bound_by="host" if clocks["host_ms"] > NEARLY * device_ms else "device",
        tflop_per_s=rate / 1e12,
        of_a_large_product=rate / bench.product_rate(),
        peak_gb=bench.peak_gb(ours.step),
        bare_peak_gb=bench.peak_gb(bare.step),
    )


def goal(bench: Bench) -> None:
    """The step beside a bare compiled ResNet, most telling ways first."""
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
            step = after_its_capture(ours) if way == "captured" else ours.step
            took = bench.seconds({"ours": step, "bare": bare.step})
        except RuntimeError as error:  # not enough memory, or no capture
            bench.add(name, left_out=f"{type(error).__name__}: {error}"[:300])
            continue
        of_bare, images_per_s = took["bare"] / took["ours"], shape.batch / took["ours"]
        bench.add(
            name,
            took["ours"] / took["bare"],
            images_per_s=images_per_s,
            bare_images_per_s=shape.batch / took["bare"],
            goal=f"{OF_BARE:g} of the bare step's speed and {IMAGES_PER_S:,.0f} images/s",
            reached=of_bare >= OF_BARE and images_per_s >= IMAGES_PER_S,
        )
        del ours, step
        if bench.on_gpu:
            torch.cuda.empty_cache()
    torch._dynamo.reset()


def parts(bench: Bench) -> None:
    """The 15 kernels (on CPUs: operations) that take most of the device's time."""
    ours, calls = Ours(bench, bench.sizes.steps_of[0]), bench.sizes.steps
    for _ in range(3):
        ours.step()
    bench.synchronise()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(calls):
            ours.step()
        bench.synchronise()
    clock = "self_device_time_total" if bench.on_gpu else "self_cpu_time_total"
    kernels = [
        event
        for event in profiler.key_averages()
        if not bench.on_gpu or event.device_type == DeviceType.CUDA
    ]
    total = sum(getattr(event, clock) for event in kernels)
    for event in sorted(kernels, key=lambda event: -getattr(event, clock))[:15]:
        micros = getattr(event, clock)
        bench.add(
            f"kernel {event.key[:90]}",
            ms=micros / 1e3 / calls, share=micros / total, calls=event.count // calls,
        )  # fmt: skip


def extraction(bench: Bench) -> None:
    """Baseline: the bare ResNet up to its pooled feature, on normalised tensors."""
    sizes = bench.sizes
    torch.manual_seed(0)
    network = DaalNetwork(NetworkConfig(backbone=sizes.backbone, weights="none")).eval()
    bare = getattr(torchvision.models, sizes.backbone)()
    bare.fc = nn.Identity()
    for module in (network, bare.eval()):
        module.to(bench.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for shape in sizes.steps_of:
        pixels_BHWC = torch.randint(
            256, (shape.batch, shape.height, shape.width, 3), dtype=torch.uint8, device=bench.device
        )
        normal_BCHW = normalise(pixels_BHWC.permute(0, 3, 1, 2))
        for precision in ("bf16", "fp32"):
            name = f"extraction {shape} {precision}"
            if bench.is_late(name):
                continue
            autocast = mixed_precision(bench.device, precision == "bf16")

            @torch.inference_mode()
            def ours(pixels: Tensor = pixels_BHWC, autocast: torch.autocast = autocast) -> None:
                with autocast:
                    network.extract(normalise(pixels.permute(0, 3, 1, 2)))

            @torch.inference_mode()
            def theirs(images: Tensor = normal_BCHW, autocast: torch.autocast = autocast) -> None:
                with autocast:
                    bare(images)

            took = bench.seconds({"ours": ours, "bare": theirs})
            bench.add(
                name,
                took["ours"] / took["bare"],
                images_per_s=shape.batch / took["ours"],
                bare_images_per_s=shape.batch / took["bare"],
                peak_gb=bench.peak_gb(ours),
            )
