"""Pure: one pass over an epoch of packs. All shapes are in one order, cut into windows and packed.

Whoever reads along holds the row groups of a window of each lane that it reads, not one a stream: a
window's samples come in the order of its packs. In that order all shapes of a row group follow one
another, and are read together: so a row group of a hundred shapes is read no more often than one
of a single shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.loading.hashing import derived_key, hashes
from pipeline.loading.lanes import Lanes, Window
from pipeline.loading.order import Numbers, Order, permutation
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
        groups: Sequence[Sequence[Unit]],
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
            groups: of each row group all units, in the order that is not shuffled.
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
        self._units = [unit for group in groups for unit in group]
        sizes = np.array([len(group) for group in groups], dtype=np.int64)
        self._ends = np.cumsum(sizes)
        self._group_of = np.repeat(np.arange(len(groups)), sizes)
        self._line = Order(
            [int(counts[kind][group]) for kind, group in self._units],
            num_streams=num_streams,
            key=key_of("line"),
            line=self._shuffled(key_of("line")),
        )
        unit_lengths = np.array([lengths[kind] for kind, _ in self._units], dtype=np.int32)
        self.packs = Lanes(
            self._lengths(unit_lengths),
            pack_length,
            num_streams=self._line.num_streams,
            key=key_of("packs"),
        )
        kind = Kind(num_samples=len(self.packs), global_batch=global_batch)
        self.plan = Plan([kind], drop_last=drop_last, key=None, offset=offset)

    def _shuffled(self, key: int | None) -> Numbers | None:
        """Positions of the units: row groups in random order, and the units inside of each."""
        if key is None:
            return None
        turns = np.argsort(permutation(len(self._ends), key))
        inside = hashes(np.arange(len(self._units)), derived_key(key, "inside"))
        line: Numbers = np.lexsort((inside, turns[self._group_of]))
        return line

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
                needed = self._read_for(set().union(*windows.values()))
                held = {unit: slot for unit, slot in held.items() if unit in needed}
            samples = np.concatenate(packs)
            places = self._line.places(samples)
            fresh: list[Slot] = []
            for unit in dict.fromkeys(places.groups.tolist()):
                if unit not in held:
                    slots = self._slots_with(unit)
                    held |= slots
                    fresh += slots.values()
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

    def _slots_with(self, unit: int) -> dict[int, Slot]:
        """Of all units of its row group: one read brings them."""
        return {
            one: Slot(kind=self._units[one][0], group=self._units[one][1])
            for one in self._beside(int(self._group_of[unit]))
        }

    def _beside(self, group: int) -> range:
        """Units of a row group."""
        return range(int(self._ends[group - 1]) if group else 0, int(self._ends[group]))

    def _read_for(self, windows: set[Window]) -> set[int]:
        """All units of the row groups that windows need."""
        spans = [self.packs.samples_of(window) for window in windows]
        places = [self._line.places(np.array(span)) for span in spans]
        groups = {group for one in places for group in self._group_of[one.groups].tolist()}
        return {unit for group in groups for unit in self._beside(group)}
