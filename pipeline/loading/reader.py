"""The steps of a process as batches: row groups fetched, rows picked, all of it ahead of time."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from pipeline.loading.batches import BatchMaker
from pipeline.loading.fetch import Fetch, Group
from pipeline.loading.packed import PackedLayout
from pipeline.loading.passes import Layout, Slot, Work
from pipeline.loading.prefetch import ahead, fulfil
from pipeline.loading.requests import alike, requests
from pipeline.loading.rows import Loaded, load_group
from pipeline.loading.snapshot import ShapeClass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Of one process."""

    fetch: Fetch
    """Where row groups come from."""
    classes: tuple[ShapeClass, ...]
    """The rows, by shape."""
    maker: BatchMaker
    """What a batch is."""
    prefetch_bytes: int
    """Read ahead, beyond the batch that is due."""
    threads: int
    """That load row groups; of latents, as many make batches."""

    def batches(
        self, layout: Layout | PackedLayout, works: Iterator[Work], *, epoch: int
    ) -> Iterator[tuple[Work, dict[str, Any]]]:
        """Steps and their batches, in order.

        Raises:
            CorruptPart: a row group is not what was committed, and is not to be replaced.
            StorageError: storage did not answer.
        """
        take = self.fetch.buffers.take
        clip_bytes = [self.maker.tokens.token_format.clip_bytes(one.shape) for one in self.classes]

        def group(slot: Slot) -> Group:
            return self.classes[slot.kind].groups[slot.group]

        def load_from(brought: Future[Fetch], slot: Slot) -> Loaded:
            slot.rows = load_group(
                brought.result(),
                self.classes[slot.kind],
                layout.orders[slot.kind],
                slot.group,
                self.maker.stored_columns,
                replace=self.maker.marks_replaced,
            )
            return slot.rows  # type: ignore[no-any-return]

        def load(slots: Sequence[Slot]) -> None:
            brought: Future[Fetch] = Future()
            fulfil(brought, lambda: self.fetch.together([group(slot) for slot in slots]))
            for slot in slots:
                fulfil(slot.loaded, functools.partial(load_from, brought, slot))

        def split(slots: Sequence[Slot]) -> list[list[Slot]]:
            ranges = [group(slot).range for slot in slots]
            joined = requests(ranges) if self.fetch.joins_requests else alike(ranges)
            return [[slots[at] for at in one] for one in joined]

        def make(work: Work) -> dict[str, Any]:
            picks = [
                (slot.rows, slot.rows.order[at])
                for slot, at in zip(work.slots, work.offsets, strict=True)
            ]
            if work.pack_sizes:
                shapes = [self.classes[slot.kind].shape for slot in work.slots]
                return self.maker.packed(picks, shapes, work, epoch=epoch, take=take)
            shape = self.classes[work.step.kind].shape
            return self.maker(picks, shape, work.samples, work.is_padding, epoch=epoch, take=take)

        return ahead(
            works,
            load,
            make,
            lambda work: self._num_bytes(work, clip_bytes),
            limit_bytes=self.prefetch_bytes,
            loaders=self.threads,
            # indices take a few calls a batch: more threads would only get in each other's way
            makers=1 if self.maker.tokens.token_format.is_discrete else self.threads,
            split=split,
            joins=self.fetch.joins_requests,
        )

    def _num_bytes(self, work: Work, clip_bytes: Sequence[int]) -> int:
        """Of the row groups that a step is the first to need, and of its batch."""
        if work.pack_sizes:
            batch = sum([clip_bytes[slot.kind] for slot in work.slots])
        else:
            batch = clip_bytes[work.step.kind] * len(work.slots)
        ranges = {self.classes[slot.kind].groups[slot.group].range for slot in work.fresh}
        return 2 * batch + sum(one.end - one.start for one in ranges)
