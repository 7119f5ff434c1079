"""Pure: one pass over an epoch as one process sees it: which row groups, which rows, when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.loading.hashing import derived_key
from pipeline.loading.order import Numbers, Order
from pipeline.loading.plan import Kind, Plan, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which part of every step is a process's own."""

    rank: int = 0
    """Of the training process."""
    world_size: int = 1
    """Training processes; each takes every ``world_size``-th sample of a step."""


@dataclass(slots=True, kw_only=True, eq=False)
class Slot:
    """A row group while a stream is reading it; freed with the last step that needs it."""

    kind: int
    """Position of its kind of rows."""
    group: int
    """Position of the row group in that kind."""
    loaded: Future[Any] = field(default_factory=Future)
    """Its rows, once somebody has read them."""
    rows: Any = None
    """The same without a lock, for those who have waited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One step of this process."""

    number: int
    """Of the step."""
    step: Step
    """What all ranks do."""
    samples: Numbers
    """Sample numbers of this rank; int64 ``[samples]``."""
    is_padding: Any
    """Whether a sample, or a pack, was handed out earlier in the epoch; bool ``[B]``."""
    slots: list[Slot]
    """Where each sample lies."""
    offsets: list[int]
    """At which place of its row group's order."""
    fresh: list[Slot]
    """Those that are to be loaded for this step."""
    pack_sizes: list[int] = field(default_factory=list)
    """Of packs, how many of the samples each one holds, in their order; else empty."""


class Layout:
    """Orders and steps of one epoch."""

    def __init__(
        self,
        counts: Sequence[Numbers],
        streams: Sequence[int],
        global_batches: Sequence[int],
        *,
        key: int | None,
        drop_last: bool,
        offset: int = 0,
    ) -> None:
        """Lay out an epoch.

        Args:
            counts: of each kind of rows, rows of each row group.
            streams: of each kind, its number of streams.
            global_batches: of each kind, samples of a step.
            key: of seed and epoch; None: not shuffled.
            drop_last: see `Plan`.
            offset: see `Plan`.
        """
        self.orders = [
            Order(
                rows, num_streams=num, key=None if key is None else derived_key(key, "rows", kind)
            )
            for kind, (rows, num) in enumerate(zip(counts, streams, strict=True))
        ]
        kinds = [
            Kind(num_samples=order.num_samples, global_batch=size)
            for order, size in zip(self.orders, global_batches, strict=True)
        ]
        schedule = None if key is None else derived_key(key, "steps")
        self.plan = Plan(kinds, drop_last=drop_last, key=schedule, offset=offset)

    def works(self, numbers: Iterable[int], share: Share) -> Iterator[Work]:
        """The steps that a process makes, by their rising numbers."""
        held_of_kinds: list[dict[int, Slot]] = [{} for _ in self.orders]
        for number in numbers:
            step = self.plan.step(number)
            order, held = self.orders[step.kind], held_of_kinds[step.kind]
            samples = step.of_rank(share.rank, share.world_size)
            places = order.places(samples % order.num_samples)
            slots, fresh = [], []
            for stream, group in zip(places.streams.tolist(), places.groups.tolist(), strict=True):
                slot = held.get(stream)
                if slot is None or slot.group != group:
                    slot = _of_neighbour(held, stream, group)
                    if slot is None:
                        slot = Slot(kind=step.kind, group=group)
                        fresh.append(slot)
                    held[stream] = slot
                slots.append(slot)
            yield Work(
                number=number,
                step=step,
                samples=samples,
                is_padding=np.asarray(samples >= order.num_samples),
                slots=slots,
                offsets=places.offsets.tolist(),
                fresh=fresh,
            )


def _of_neighbour(held: Mapping[int, Slot], stream: int, group: int) -> Slot | None:
    """A row group that a border of streams cuts, where the stream beside this one holds it."""
    for beside in (stream - 1, stream + 1):
        slot = held.get(beside)
        if slot is not None and slot.group == group:
            return slot
    return None
