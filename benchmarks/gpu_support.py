"""What the sections of benchmarks/gpu_first.py share: sizes, clocks, drawn data."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt
import torch

Row = dict[str, Any]


class Shape(NamedTuple):
    """Of a batch of images, half of them source."""

    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.batch} x {self.height}x{self.width}"


@dataclass(frozen=True)
class Sizes:
    backbone: str
    steps_of: tuple[Shape, ...]  # most telling first
    goal: Shape
    num_ids: int
    num_clusters: int
    steps: int  # of a timing, of which there are `rounds`
    rounds: int
    check: Shape
    points: tuple[tuple[int, int], ...]  # features (N, D)
    queries: int
    gallery: int
    dim: int
    matmul: int


FULL = Sizes(
    backbone="resnet50",
    steps_of=(*(Shape(batch, 384, 128) for batch in (32, 128, 64, 256)),
              *(Shape(batch, 256, 128) for batch in (64, 256))),
    goal=Shape(256, 384, 128),
    num_ids=751,
    num_clusters=700,
    steps=10,
    rounds=5,
    check=Shape(16, 256, 128),
    points=((12_936, 2048), (32_621, 2048)),
    queries=11_659,
    gallery=82_161,
    dim=2048,
    matmul=8192,
)  # fmt: skip
_TINY = Shape(4, 64, 64)
QUICK = Sizes(
    backbone="resnet18",
    steps_of=(_TINY,),
    goal=_TINY,
    num_ids=20,
    num_clusters=30,
    steps=1,
    rounds=1,
    check=_TINY,
    points=((800, 32),),
    queries=60,
    gallery=600,
    dim=32,
    matmul=256,
)


class Bench:
    """Device, sizes, and of a section: time left, and the rows found so far."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.on_gpu = self.device.type == "cuda"
        self.is_quick: bool = given.quick
        self.sizes = QUICK if given.quick else FULL
        self.points = tuple(given.points or self.sizes.points)
        # With --json, the object alone is the result.
        self._progress: TextIO = sys.stderr if given.json else given.results
        self.begin(0)
        self._rate: float | None = None
        # Inductor needs a C++ compiler on CPUs, and minutes; there only the graph is checked.
        self.compiler = "inductor" if self.on_gpu else "aot_eager"

    def begin(self, seconds: float) -> None:
        """A section, which has so long."""
        self.rows: list[Row] = []
        self._end = time.monotonic() + seconds

    def add(self, name: str, ratio: float | None = None, **figures: Any) -> None:
        """A row: `ratio` is our time, or other cost, over the baseline's."""
        self.rows.append({"name": name, "ratio": ratio, **figures})

    def is_late(self, name: str) -> bool:
        """Whether the time is used up; then a row says what was left out."""
        if time.monotonic() < self._end:
            return False
        self.add(name, left_out="no time left")
        return True

    def say(self, text: str) -> None:
        print(text, file=self._progress, flush=True)

    def synchronise(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    # ---- Clocks ---------------------------------------------------------------------

    def seconds(
        self, functions: dict[str, Callable[[], object]], calls: int | None = None
    ) -> dict[str, float]:
        """Median seconds of a call of each, measured in turn after two calls to warm up."""
        calls = calls or self.sizes.steps
        for function in functions.values():
            function()
            function()
        times: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(self.sizes.rounds):
            for name, function in functions.items():
                times[name].append(self.timed(function, calls))
        return {name: statistics.median(some) for name, some in times.items()}

    def timed(self, function: Callable[[], object], calls: int = 1) -> float:
        """Seconds a call, on the device's own clock if it has one."""
        self.synchronise()
        if not self.on_gpu:
            start = time.perf_counter()
            for _ in range(calls):
                function()
            return (time.perf_counter() - start) / calls
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        for _ in range(calls):
            function()
        events[1].record()
        events[1].synchronize()
        return events[0].elapsed_time(events[1]) / 1e3 / calls

    def host_and_device(self, function: Callable[[], object]) -> dict[str, float]:
        """Milliseconds of a call, after three to warm up.

        `host_ms`: until it is issued, to a device that has nothing else to do. `alone_ms`: until
        the device is done with it. `steady_ms`: of each of several in a row, as in training.
        """
        for _ in range(3):
            function()
        host, alone = [], []
        for _ in range(self.sizes.steps):
            self.synchronise()
            start = time.perf_counter()
            function()
            host.append(time.perf_counter() - start)
            self.synchronise()
            alone.append(time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(self.sizes.steps):
            function()
        self.synchronise()
        steady = (time.perf_counter() - start) / self.sizes.steps
        took = (statistics.median(host), statistics.median(alone), steady)
        return dict(zip(("host_ms", "alone_ms", "steady_ms"), (1e3 * s for s in took), strict=True))

    def peak_gb(self, function: Callable[[], object]) -> float | None:
        """Device memory that a call takes on top of what was allocated before it."""
        if not self.on_gpu:
            return None
        function()  # what is kept between calls is there from now on
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 1e9

    def product_rate(self) -> float:
        """Floating-point operations per second of a large bf16 product, measured once."""
        if self._rate is None:
            size = self.sizes.matmul
            left, right = torch.randn(2, size, size, device=self.device).bfloat16()
            self._rate = 2 * size**3 / self.seconds({"mm": lambda: left @ right})["mm"]
        return self._rate


# ---- Drawn data -------------------------------------------------------------------------


class Drawn(NamedTuple):
    """Features (N, D) float32 of length 1, and who is seen where."""

    features: npt.NDArray[np.float32]
    pids: npt.NDArray[np.int64]
    camids: npt.NDArray[np.int64]


def drawn_features(num: int, dim: int, seed: int = 0) -> Drawn:
    """Identities of 10 to 25 images in 48 dimensions, a shift for each of 8 cameras, rotated
    into `dim` dimensions, with noise: as in benchmarks/pseudo_labels.py."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(10, 26, num // 10 + 1)
    pids = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)[:num])
    camids = rng.integers(0, 8, num)
    latent = rng.standard_normal((len(sizes), 48), np.float32)[pids]
    latent += 0.3 * rng.standard_normal((8, 48), np.float32)[camids]
    latent += 0.7 * rng.standard_normal((num, 48), np.float32)
    features = latent @ (rng.standard_normal((48, dim), np.float32) / np.float32(np.sqrt(48)))
    for start in range(0, num, 10_000):
        some = features[start : start + 10_000]
        some += 0.3 * rng.standard_normal(some.shape, np.float32)
        some /= np.linalg.norm(some, axis=1, keepdims=True)
    return Drawn(features, pids, camids)
