"""Pure: one pass over an epoch of packs. All shapes are in one order, cut into windows and packed.

Whoever reads along holds the row groups of a window of each lane that it reads, not one a stream: a
window's samples come in the order of its packs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.loading.hashing import derived_key
from pipeline.loading.lanes import Lanes, Window
from pipeline.loading.order import Numbers, Order
from pipeline.loading.passes import Share, Slot, Work
from pipeline.loading.plan import Kind, Plan

Unit: TypeAlias = tuple[int, int]
"""The rows of one shape in one row group: position of the kind, of the group in the kind."""

_AT_ONCE = 1 << 20


class PackedLayout:
    """Order, packs and steps of one epoch."""

    def __init__(
        self,
        counts: Sequence[Numbers],
        lengths: Sequence[int],
        units: Sequence[Unit],
        *,
        pack_length: int,
        num_streams: int,
        global_batch: int,
        key: int | None,
        drop_last: bool,
        offset: int = 0,
    ) -> None:
        """Lay out an epoch.

        Args:
            counts: of each kind of rows, rows of each row group.
            lengths: of each kind, tokens of a row.
            units: all of them, in the order that is not shuffled.
            pack_length: tokens of a pack.
            num_streams: of the order of all units.
            global_batch: packs of a step.
            key: of seed and epoch; None: not shuffled.
            drop_last: see `Plan`; of packs.
            offset: see `Plan`; of packs.
        """

        def key_of(*purpose: int | str) -> int | None:
            return None if key is None else derived_key(key, *purpose)

        self.orders = [
            Order(rows, num_streams=1, key=key_of("rows", kind)) for kind, rows in enumerate(counts)
        ]
        self._units = list(units)
        self._line = Order(
            [int(counts[kind][group]) for kind, group in units],
            num_streams=num_streams,
            key=key_of("line"),
        )
        unit_lengths = np.array([lengths[kind] for kind, _ in units], dtype=np.int32)
        self.packs = Lanes(
            self._lengths(unit_lengths),
            pack_length,
            num_streams=self._line.num_streams,
            key=key_of("packs"),
        )
        kind = Kind(num_samples=len(self.packs), global_batch=global_batch)
        self.plan = Plan([kind], drop_last=drop_last, key=None, offset=offset)

    def _lengths(self, unit_lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Tokens of every sample of the order; a piece at a time, places are large."""
        lengths = np.empty(self._line.num_samples, dtype=np.int32)
        for start in range(0, len(lengths), _AT_ONCE):
            samples = np.arange(start, min(start + _AT_ONCE, len(lengths)))
            lengths[samples] = unit_lengths[self._line.places(samples).groups]
        return lengths

    def works(self, numbers: Iterable[int], share: Share) -> Iterator[Work]:
        """The steps that a process makes, by their rising numbers."""
        held: dict[int, Slot] = {}
        windows: dict[int, set[Window]] = {}
        for number in numbers:
            step = self.plan.step(number)
            numbers = step.of_rank(share.rank, share.world_size)
            wrapped = (numbers % len(self.packs)).tolist()
            packs = [self.packs[one] for one in wrapped]
            reached: dict[int, set[Window]] = {}  # by lane; those that others stand in stay
            for window in map(self.packs.window_of, wrapped):
                reached.setdefault(window[0], set()).add(window)
            if windows != (windows := windows | reached):
                needed = self._units_in(set().union(*windows.values()))
                held = {unit: slot for unit, slot in held.items() if unit in needed}
            samples = np.concatenate(packs)
            places = self._line.places(samples)
            fresh = []
            for unit in dict.fromkeys(places.groups.tolist()):
                if unit not in held:
                    kind, group = self._units[unit]
                    held[unit] = Slot(kind=kind, group=group)
                    fresh.append(held[unit])
            yield Work(
                number=number,
                step=step,
                samples=samples,
                is_padding=np.asarray(numbers >= len(self.packs)),
                slots=[held[unit] for unit in places.groups.tolist()],
                offsets=places.offsets.tolist(),
                fresh=fresh,
                pack_sizes=[len(pack) for pack in packs],
            )

    def _units_in(self, windows: set[Window]) -> set[int]:
        spans = [self.packs.samples_of(window) for window in windows]
        places = [self._line.places(np.array(span)) for span in spans]
        return {unit for one in places for unit in np.unique(one.groups).tolist()}
