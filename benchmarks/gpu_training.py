"""Sections of benchmarks/gpu_first.py on the network: training, its parts, extraction.

DAAL's step is all that a worker does for a batch that is on its device: uint8 images ->
augmentation, Eq. 4's weights, forward and Eq. 7 through DAAM, backward, finite check, update. The
baseline's is a bare torchvision ResNet on normalised tensors that are there already:
forward, cross entropy, backward, fused SGD. Both in bf16 autocast and channels_last.

How floors are counted. FLOPs: those of the products and convolutions of one step of ours, by
torch's FlopCounterMode. Bytes: each leaf module's result is written and read once forward,
read once again backward, and its gradient written and read (5 x its bytes); weights and
optimizer's state in fp32: weight read, bf16 copy written and read twice, gradient written, then
gradient, weight and momentum read and the latter two written (34 bytes a parameter). BatchNorm's
second look at its input, attention's elementwise products and the augmentation are left out,
so that it is a floor for kernels that each do one module's work; a compiler that fuses modules
may pass below it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.autograd.profiler_util import DeviceType  # type: ignore[attr-defined]
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_support import Bench, Shape, drawn_people
from cluster.soft_labels import soft_label_weights
from daal import losses
from daal.captured_step import WARM_UP, CapturedStep, CudaGraph
from daal.config import AugmentConfig, LossConfig, NetworkConfig, OptimConfig
from daal.data.augment import augment, draw_table, normalise, sample_seeds
from daal.evaluation import evaluate
from daal.host_copy import HostCopy
from daal.nn.network import DaalNetwork
from daal.optimizer import make_optimizer
from daal.step import TrainBatch, mixed_precision, train_step

PASSES_OF_RESULTS = 5
BYTES_PER_PARAMETER = 4 + 3 * 2 + 4 + 5 * 4
OPTIM = OptimConfig()


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

    def update(self, batch: TrainBatch) -> losses.LossTerms:
        terms = self._train(batch)
        self._look_at_the_step_before()
        return terms

    def step(self) -> losses.LossTerms:
        return self.update(self.batch())

    def step_from_host(self) -> losses.LossTerms:
        images_BHWC = self.host_images_BHWC.to(self.device, non_blocking=True)
        return self.update(self.batch(Pixels(images_BHWC, self.pixels.table_BX)))

    def captured(self) -> Callable[[], losses.LossTerms]:
        """`step` as one CUDA graph, which is captured after WARM_UP calls; needs a GPU.

        A call raises RuntimeError if it can't be captured.
        """

        def take(parts: Sequence[Pixels]) -> losses.LossTerms:
            return self._train(self.batch(*parts))

        def refuse(error: RuntimeError) -> None:
            raise error

        replayed = CapturedStep(take, self.device, CudaGraph(), WARM_UP, refuse)

        def step() -> losses.LossTerms:
            terms = replayed([self.pixels])
            self._look_at_the_step_before()
            return terms

        return step

    def _train(self, batch: TrainBatch) -> losses.LossTerms:
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


# ---- Training ---------------------------------------------------------------------------


def training(bench: Bench) -> None:
    bandwidth, rate = bench.rates()
    bench.add("measured copy and bf16 product", gb_per_s=bandwidth / 1e9, tflop_per_s=rate / 1e12)
    for compiled, shapes in ((False, bench.sizes.eager), (True, bench.sizes.compiled)):
        for shape in shapes:
            name = f"training {shape} {'compiled' if compiled else 'eager'}"
            if bench.is_late(name):
                continue
            try:
                _training(bench, name, shape, compiled)
            except torch.OutOfMemoryError:
                bench.add(name, left_out="not enough memory")
            torch._dynamo.reset()
            if bench.on_gpu:
                torch.cuda.empty_cache()


def _training(bench: Bench, name: str, shape: Shape, compiled: bool) -> None:
    ours, bare = Ours(bench, shape, compiled=compiled), Bare(bench, shape, compiled)
    took = bench.seconds({"ours": ours.step, "bare": bare.step, "from host": ours.step_from_host})
    num_bytes, flops = _work(ours) if not compiled else (None, None)
    bandwidth, rate = bench.rates()
    bench.add(
        name,
        took["ours"] / took["bare"],
        images_per_s=shape.batch / took["ours"],
        bare_images_per_s=shape.batch / took["bare"],
        from_host_images_per_s=shape.batch / took["from host"],
        ms=1e3 * took["ours"],
        byte_floor_ms=num_bytes and 1e3 * num_bytes / bandwidth,
        flop_floor_ms=flops and 1e3 * flops / rate,
        peak_gb=bench.peak_gb(ours.step),
        bare_peak_gb=bench.peak_gb(bare.step),
    )


def _work(ours: Ours) -> tuple[int, int]:
    """Bytes and FLOPs of a step; see the module's docstring."""
    result_bytes = []

    def count(module: nn.Module, _: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            result_bytes.append(out.numel() * out.element_size())

    leaves = [module for module in ours.network.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(count) for module in leaves]
    with FlopCounterMode(display=False) as counter:
        ours.step()
    for hook in hooks:
        hook.remove()
    num_parameters = sum(parameter.numel() for parameter in ours.network.parameters())
    num_bytes = PASSES_OF_RESULTS * sum(result_bytes) + BYTES_PER_PARAMETER * num_parameters
    return num_bytes, counter.get_total_flops()


# ---- Parts ------------------------------------------------------------------------------


class Marks:
    """Points in time on the device's clock, by the name of what ends there."""

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._points: list[tuple[str, Any]] = []

    def __call__(self, name: str) -> None:
        point: Any = time.perf_counter()
        if self._on_gpu:
            point = torch.cuda.Event(enable_timing=True)
            point.record()
        self._points.append((name, point))

    def seconds(self) -> dict[str, float]:
        """Of all parts of one name together; the first mark is where the clock starts."""
        total: dict[str, float] = {}
        for (_, start), (name, end) in pairwise(self._points):
            took = start.elapsed_time(end) / 1e3 if self._on_gpu else end - start
            total[name] = total.get(name, 0.0) + took
        return total


def parts(bench: Bench) -> None:
    """By part, then the 15 kernels (on CPUs: operations) that take most of the device's time."""
    shape = bench.sizes.profiled
    ours = Ours(bench, shape)
    for _ in range(3):
        ours.step()
    bench.synchronise()
    marks, calls = Marks(bench.on_gpu), bench.sizes.steps
    with _marked(ours, marks):
        marks("start")
        for _ in range(calls):
            batch = ours.batch()
            marks("augmentation and Eq. 4")
            ours.update(batch)
            marks("optimizer")
        bench.synchronise()
    took = marks.seconds()
    for name, seconds in took.items():
        share = seconds / sum(took.values())
        bench.add(f"{shape}: {name}", ms=1e3 * seconds / calls, share=share)

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


@contextmanager
def _marked(ours: Ours, marks: Marks) -> Iterator[None]:
    """Let the step's own parts mark their ends."""
    hooks = [
        module.register_forward_hook(lambda *_, name=name: marks(name))
        for name, module in (
            ("backbone", ours.network.backbone), ("attention", ours.network.attention),
        )
    ]  # fmt: skip
    total_loss = losses.total_loss

    def marked_loss(*arguments: Any, **weights: Any) -> losses.LossTerms:
        terms = total_loss(*arguments, **weights)
        marks("heads and losses")
        return terms

    ours.agree = lambda flag: marks("backward and finite check")
    with patch.object(losses, "total_loss", marked_loss):
        yield
    ours.agree = lambda flag: None
    for hook in hooks:
        hook.remove()


# ---- Extraction -------------------------------------------------------------------------


def extraction(bench: Bench) -> None:
    """Baseline: the bare ResNet up to its pooled feature, on normalised tensors."""
    settings = {
        "bf16": mixed_precision(bench.device, True),
        "fp32": mixed_precision(bench.device, False),
    }
    for shape in bench.sizes.eager:
        for name, autocast in settings.items():
            if not bench.is_late(f"extraction {shape} {name}"):
                _extraction(bench, shape, name, autocast)
    images_NCHW, pids_N = drawn_people(64, 8, bench.sizes.check)
    features = {
        name: _features(bench, images_NCHW.to(bench.device), autocast)
        for name, autocast in settings.items()
    }
    angle_N = 1 - (features["bf16"].double() * features["fp32"].double()).sum(1)
    between = 1 - (features["fp32"][:-8] * features["fp32"][8:]).sum(1)
    is_query_N = torch.arange(len(pids_N)) % 8 == 0
    score = {}
    for name, features_NC in features.items():
        query, gallery = (
            (features_NC[rows], pids_N[rows], torch.full((int(rows.sum()),), camera))
            for camera, rows in enumerate((is_query_N, ~is_query_N))
        )
        score[name] = evaluate(*query, *gallery).map
    bench.add(
        "bf16 features: 1 - cosine to fp32's", cosine_loss_mean=float(angle_N.mean()),
        cosine_loss_max=float(angle_N.max()), between_people=float(between.mean()),
        map_bf16=score["bf16"], map_fp32=score["fp32"],
    )  # fmt: skip


def _extraction(bench: Bench, shape: Shape, name: str, autocast: torch.autocast) -> None:
    network = _settled(bench).eval()
    bare = getattr(torchvision.models, bench.sizes.backbone)()
    bare.fc = nn.Identity()
    bare = bare.to(bench.device, memory_format=torch.channels_last).eval()
    pixels_BHWC = torch.randint(
        256, (shape.batch, shape.height, shape.width, 3), dtype=torch.uint8, device=bench.device
    )
    normal_BCHW = normalise(pixels_BHWC.permute(0, 3, 1, 2))

    @torch.inference_mode()
    def ours() -> None:
        with autocast:
            network.extract(normalise(pixels_BHWC.permute(0, 3, 1, 2)))

    @torch.inference_mode()
    def theirs() -> None:
        with autocast:
            bare(normal_BCHW)

    took = bench.seconds({"ours": ours, "bare": theirs})
    bench.add(
        f"extraction {shape} {name}",
        took["ours"] / took["bare"],
        images_per_s=shape.batch / took["ours"],
        bare_images_per_s=shape.batch / took["bare"],
        ms=1e3 * took["ours"],
        peak_gb=bench.peak_gb(ours),
    )


def _settled(bench: Bench, images_NCHW: Tensor | None = None) -> DaalNetwork:
    """A network of random weights, with BatchNorm statistics of these images."""
    torch.manual_seed(0)
    network = DaalNetwork(NetworkConfig(backbone=bench.sizes.backbone, weights="none"))
    network = network.to(bench.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if images_NCHW is not None:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.inference_mode():
            network.train().extract(normalise(images_NCHW[:64]))
    return network


@torch.inference_mode()
def _features(bench: Bench, images_NCHW: Tensor, autocast: torch.autocast) -> Tensor:
    network = _settled(bench, images_NCHW).eval()
    with autocast:
        parts = [network.extract(normalise(some)) for some in images_NCHW.split(64)]
    return torch.cat(parts)
