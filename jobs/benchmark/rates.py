"""What the machine can do at best, measured beside a network and in the same rounds.

A 3x3 channels-last convolution of each shape that the network has, a large matrix product, and a
copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from jobs.benchmark.measure import median
from tokenizer.cost import Product
from tokenizer.layers.tiles import TILE_VALUES

ENOUGH_FLOPS = {"cpu": 4 * 10**9, "cuda": 10**12}
"""A contestant does at least so much at a time, or its time would be that of the clock."""
MATMUL_SIDES = {"cpu": 2048, "cuda": 8192}


Contestant = tuple[int, Callable[[], object]]
"""What it does in one run (FLOPs, or bytes), and the run."""


@dataclass(slots=True)
class Seconds:
    """Wall and CPU time of one run; on a GPU the CPU time says nothing."""

    wall: float
    cpu: float


def stopwatch(action: Callable[[], object], device: str) -> Seconds:
    """Time one run, all of it: a GPU is waited for."""
    finish(device)
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    finish(device)
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def finish(device: str) -> None:
    """Wait for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True, slots=True)
class ConvShape:
    """A 3x3 convolution of ``frames`` pictures, C -> C."""

    frames: int
    height: int
    width: int
    channels: int

    @property
    def flops(self) -> int:
        """A multiply-add counts two."""
        return 2 * 9 * self.channels**2 * self.frames * self.height * self.width


def shape_of(product: Product) -> ConvShape:
    """The 3x3 convolution that stands for a product: same place in the network, same width."""
    t, h, w = product.shape
    return ConvShape(t, h, w, max(product.out_channels, 64))


def conv_contestant(shape: ConvShape, *, batch: int, dtype: torch.dtype, device: str) -> Contestant:
    """FLOPs of one run, and the run: on a CPU as many frames as fit its cache, which is fastest."""
    frames = shape.frames * batch
    if device == "cpu":
        frame_values = shape.height * shape.width * shape.channels
        frames = max(1, min(shape.frames, TILE_VALUES // frame_values))
    size = (frames, shape.channels, shape.height, shape.width)
    x = torch.randn(size, device=device).to(dtype, memory_format=torch.channels_last)
    side = (shape.channels, shape.channels, 3, 3)
    weight = torch.randn(side, device=device).to(dtype, memory_format=torch.channels_last)
    bias = torch.zeros(shape.channels, device=device, dtype=dtype)
    flops = shape.flops // shape.frames * frames
    repeats = max(1, ENOUGH_FLOPS[device] // flops)

    def run() -> None:
        for _ in range(repeats):
            F.conv2d(x, weight, bias, padding=1)

    return flops * repeats, run


def matmul_contestant(dtype: torch.dtype, device: str) -> Contestant:
    """FLOPs of one product of two large square matrices, and the run."""
    side = MATMUL_SIDES[device]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3, lambda: a @ b


def copy_contestant(device: str) -> Contestant:
    """Bytes read and written by one copy that no cache holds, and the run."""
    num_bytes = 2**28 if device == "cpu" else 2**31
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes, lambda: target.copy_(source)


def mean_rate(flops: Sequence[int], rates: Sequence[float]) -> float:
    """FLOP-weighted: all operations by the time that they take at their own rates."""
    return sum(flops) / sum(f / rate for f, rate in zip(flops, rates, strict=True))


class Rates:
    """The machine's rates for one network, measured a little at a time."""

    def __init__(
        self, products: Sequence[Product], *, batch: int, dtype: torch.dtype, device: str
    ) -> None:
        """Args: the network's products, for one clip; how it runs."""
        self.flops_of: dict[ConvShape, int] = {}
        for product in products:
            shape = shape_of(product)
            self.flops_of[shape] = self.flops_of.get(shape, 0) + product.flops
        self._contestants = {
            shape: conv_contestant(shape, batch=batch, dtype=dtype, device=device)
            for shape in self.flops_of
        }
        self._matmul = matmul_contestant(dtype, device)
        self._copy = copy_contestant(device)
        self._device = device
        self._seen: dict[object, list[Seconds]] = {}

    def measure(self) -> None:
        """Every contestant once more."""
        others = {"matmul": self._matmul, "copy": self._copy}
        for name, (_, run) in [*self._contestants.items(), *others.items()]:
            self._seen.setdefault(name, []).append(stopwatch(run, self._device))

    def conv(self, shape: ConvShape, clock: str = "wall") -> float:
        """FLOP/s of the 3x3 convolution of a shape; of the nearest where it was not measured."""
        nearest = min(
            self._contestants,
            key=lambda other: (
                other.channels != shape.channels,
                abs(other.height - shape.height),
                abs(other.frames - shape.frames),
            ),
        )
        return self._rate(nearest, self._contestants[nearest][0], clock)

    def mean_conv(self, clock: str = "wall") -> float:
        """FLOP/s over all convolutions of the network, weighted by their operations."""
        rates = [self.conv(shape, clock) for shape in self.flops_of]
        return mean_rate(list(self.flops_of.values()), rates)

    def matmul(self, clock: str = "wall") -> float:
        """FLOP/s."""
        return self._rate("matmul", self._matmul[0], clock)

    def copy(self) -> float:
        """Bytes/s, read and written."""
        return self._rate("copy", self._copy[0], "wall")

    def _rate(self, name: object, amount: int, clock: str) -> float:
        # not the first, which picks kernels and touches memory
        seen = self._seen[name][1:] or self._seen[name]
        return amount / median([getattr(seconds, clock) for seconds in seen])
