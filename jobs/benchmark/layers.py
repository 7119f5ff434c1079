"""The layers of a network one by one: their time against their own floor.

A layer's floor is the longer of two times: its operations at the convolution rate of its shape, and
its bytes (input, output, weights, each once) at the rate of a copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from jobs.benchmark.measure import median, table
from jobs.benchmark.rates import ConvShape, Rates, finish
from tokenizer.layers.blocks import Attention, ResBlock
from tokenizer.layers.conv import CausalConv, FrameConv, VolumeConv
from tokenizer.layers.resample import (
    FrameDownsample,
    FrameUpsample,
    TimeDownsample,
    TimeUpsample,
)

LAYERS = (
    ResBlock,
    Attention,
    FrameDownsample,
    FrameUpsample,
    TimeDownsample,
    TimeUpsample,
    CausalConv,
    VolumeConv,
    FrameConv,
)
"""Rows of the table; what lies inside one of them is part of it."""

Note = Callable[["LayerCost", nn.Module, Tensor, Tensor, float], None]
"""Told of a layer that ran: its record, itself, input, output, seconds."""


@dataclass(slots=True)
class LayerCost:
    """One layer of a network."""

    name: str
    flops: int = 0
    num_bytes: int = 0
    """Input, output and weights, each once."""
    shape: ConvShape = field(default_factory=lambda: ConvShape(1, 1, 1, 64))
    """The 3x3 convolution whose rate is its own."""
    seconds: list[float] = field(default_factory=list)
    """Of each run."""

    def floor_seconds(self, rates: Rates) -> float:
        """At the full rate of the machine."""
        return max(self.flops / rates.conv(self.shape), self.num_bytes / rates.copy())


class LayerTimes:
    """Times the layers of a network while it runs; not for compiled or recorded ones."""

    def __init__(self, network: nn.Module, device: str) -> None:
        """Args: network, and where it is."""
        self.layers = {
            name: LayerCost(name)
            for name, module in network.named_modules()
            if isinstance(module, LAYERS)
        }
        for name in list(self.layers):
            if any(name.startswith(f"{other}.") for other in self.layers):
                del self.layers[name]
        self._network, self._device = network, device
        self.total_flops = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count FLOPs and bytes of the run inside."""
        with FlopCounterMode(display=False) as counter, self._hooks(self._note_sizes):
            yield
        self.total_flops = counter.get_total_flops()
        counts = counter.get_flop_counts()
        for name, cost in self.layers.items():
            found = counts.get(f"{type(self._network).__name__}.{name}", {})
            cost.flops = sum(found.values())

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Time the layers of the run inside."""
        with self._hooks(self._note_seconds):
            yield

    @contextmanager
    def _hooks(self, note: Note) -> Iterator[None]:
        handles: list[Any] = []
        began: dict[str, float] = {}
        for name, cost in self.layers.items():

            def before(_module: nn.Module, _inputs: object, name: str = name) -> None:
                finish(self._device)
                began[name] = time.perf_counter()

            def after(
                module: nn.Module,
                inputs: tuple[Tensor, ...],
                output: Tensor,
                name: str = name,
                cost: LayerCost = cost,
            ) -> None:
                finish(self._device)
                note(cost, module, inputs[0], output, time.perf_counter() - began[name])

            module = self._network.get_submodule(name)
            handles += [
                module.register_forward_pre_hook(before),
                module.register_forward_hook(after),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def _note_seconds(
        cost: LayerCost, _module: nn.Module, _x: Tensor, _y: Tensor, seconds: float
    ) -> None:
        cost.seconds.append(seconds)

    @staticmethod
    def _note_sizes(
        cost: LayerCost, module: nn.Module, x: Tensor, y: Tensor, _seconds: float
    ) -> None:
        weights = sum(p.numel() for p in module.parameters()) * x.element_size()
        cost.num_bytes = x.nbytes + y.nbytes + weights
        cost.shape = ConvShape(y.shape[1], y.shape[2], y.shape[3], max(y.shape[4], 64))

    def table(self, rates: Rates) -> str:
        """Every layer with its share of the time and its distance from its floor."""
        rows = [["layer", "GFLOP", "MB", "ms", "floor ms", "of floor", "of time"]]
        total = sum(median(cost.seconds) for cost in self.layers.values())
        for cost in self.layers.values():
            seconds, floor = median(cost.seconds), cost.floor_seconds(rates)
            rows.append(
                [
                    cost.name,
                    f"{cost.flops / 1e9:.1f}",
                    f"{cost.num_bytes / 1e6:.0f}",
                    f"{seconds * 1e3:.1f}",
                    f"{floor * 1e3:.1f}",
                    f"{floor / seconds:.0%}",
                    f"{seconds / total:.1%}",
                ]
            )
        return table(rows)

    def figures(self, rates: Rates) -> list[dict[str, Any]]:
        """The same for a program."""
        return [
            {
                "layer": cost.name,
                "flops": cost.flops,
                "bytes": cost.num_bytes,
                "seconds": median(cost.seconds),
                "floor_seconds": cost.floor_seconds(rates),
            }
            for cost in self.layers.values()
        ]
