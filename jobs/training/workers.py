"""The workers of a training among each other: who this is, and one answer for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One process of a training."""

    device: torch.device
    """Where it computes."""
    rank: int = 0
    """0 writes the run folder."""
    world_size: int = 1
    """How many there are; more than one are connected by torch.distributed."""

    @property
    def is_first(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0

    def decided(self, decide: Callable[[], Value]) -> Value:
        """What the first one decides, on all of them; it must not fail."""
        if self.world_size == 1:
            return decide()
        answer: list[Any] = [decide() if self.is_first else None]
        dist.broadcast_object_list(answer, src=0, device=self._meeting_device)
        value: Value = answer[0]
        return value

    def gathered(self, value: Value) -> list[Value]:
        """The values of all, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    @property
    def _meeting_device(self) -> torch.device | None:
        return self.device if self.device.type == "cuda" else None
